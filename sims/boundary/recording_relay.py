"""A relay in a process of its own that orders one round, and keeps everything that it carries: in memory, in a database
and in a log. ``python -m sims.boundary.recording_relay FOLDER DOOR...`` with ``SOCKET=SECRET`` for each node.

It says ``done`` when the round is over, and stays, so that its memory can be searched, until its input closes.
"""

import sqlite3
import sys
import time
from pathlib import Path

from protocol.transport.frame import Frame, encode_header
from protocol.transport.local_socket import ask, load_secret
from protocol.transport.relay import run_round

DATABASE, LOG = "relay.db", "relay.log"
DONE = "done"


def main() -> None:
    """One round between the nodes behind these doors."""
    folder, *given = sys.argv[1:]
    doors = [word.partition("=") for word in given]
    database = sqlite3.connect(Path(folder) / DATABASE, isolation_level=None)
    database.execute("CREATE TABLE carried (node INTEGER, direction TEXT, name TEXT, data BLOB)")
    carried: list[Frame] = []

    with (Path(folder) / LOG).open("w") as log:

        def keep(node: int, direction: str, frame: Frame) -> Frame:
            carried.append(frame)
            for name, data in {"header": encode_header(frame), **frame.parts}.items():
                database.execute("INSERT INTO carried VALUES (?, ?, ?, ?)", (node, direction, name, data))
            print(node, direction, frame, file=log, flush=True)
            return frame

        def exchange(node: int, command: Frame) -> Frame:
            path, _, secret = doors[node]
            keep(node, "to", command)
            return keep(node, "from", ask(Path(path), load_secret(Path(secret)), command))

        run_round(
            exchange,
            range(len(doors)),
            ["condensed"],
            lambda line: print(line, file=log, flush=True),
            lambda seconds: time.sleep(min(seconds, 0.2)),
            lambda: None,
        )
    print(DONE, flush=True)
    sys.stdin.read()
    # Everything is still held here.
    assert carried


if __name__ == "__main__":
    main()
