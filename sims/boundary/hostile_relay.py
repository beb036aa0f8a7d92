"""A hostile ServerApp: it sends overheard messages to our couriers, and records the answers.

In the archive it is ``relay_of_an_attacker.py``; in ``overheard.json`` beside it stand the messages, by batch and name.
"""

import base64
import json
import time
from pathlib import Path

from flwr.app import Context, Message
from flwr.serverapp import Grid, ServerApp

from protocol.transport.courier import MESSAGE_TYPE, from_record, to_record
from protocol.transport.frame import Frame

_PATIENCE = 90.0

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Bring every node the commands of ``first``, and when those are answered all of ``then``."""
    wanted, deadline = int(str(context.run_config["nodes"])), time.monotonic() + _PATIENCE
    nodes: list[int] = []
    while len(nodes) < wanted and time.monotonic() < deadline:
        nodes = list(grid.get_node_ids())
        time.sleep(0.2)
    overheard = json.loads(Path(__file__).with_name("overheard.json").read_text())
    answers: dict[str, dict[str, dict[str, str]]] = {}
    for batch in ("first", "then"):
        brought = {}
        for name, encoded in overheard[batch].items():
            parts = {part: base64.b64decode(text) for part, text in encoded.items()}
            command = to_record(Frame("inherit", parts=parts))
            for node in nodes:
                (identity,) = grid.push_messages([Message(command, dst_node_id=node, message_type=MESSAGE_TYPE)])
                brought[identity] = name, node
        while brought and time.monotonic() < deadline + _PATIENCE:
            for reply in grid.pull_messages(list(brought)):
                name, node = brought.pop(reply.metadata.reply_to_message_id)
                said = Frame("error") if reply.has_error() else from_record(reply.content)
                texts = {part: data.hex() for part, data in said.parts.items()}
                answers.setdefault(str(node), {})[name] = {"word": said.name, **said.fields, **texts}
            time.sleep(0.2)
    Path(str(context.run_config["out"])).write_text(json.dumps(list(answers.values())))
