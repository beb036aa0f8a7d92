"""The program of a run's SuperLink: ``python -I -m sims.run.superlink READY [OPTION...]``.

Flower's own command with two changes: no other process can take its port first, and it answers only this user.
"""

import os
import socket
import sys
from typing import Any

import uvicorn
from flwr.superlink.cli import flower_superlink

from sims.run.same_user import SameUserOnly, offered

_SIMULATION = ("--insecure", "--simulation")


def main() -> None:
    """Serve until a signal; once the server answers, its port goes in one line to the descriptor ``READY``. Options are
    passed to Flower's command; without any, those of a simulation are used.
    """
    ready, options = int(sys.argv[1]), sys.argv[2:] or _SIMULATION
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]

        class Server(uvicorn.Server):
            async def startup(self, sockets: list[socket.socket] | None = None) -> None:
                await super().startup(sockets)
                os.write(ready, f"{port}\n".encode())
                os.close(ready)

        def serve(app: Any, *, host: str, port: int, reload: bool, workers: int, **settings: Any) -> None:  # noqa: ANN401
            guarded = SameUserOnly(app) if offered() else app
            Server(uvicorn.Config(guarded, **settings)).run(sockets=[listener])

        # Flower offers no option for either. If a later Flower serves in another way, it finds the port taken.
        uvicorn.run = serve  # type: ignore[assignment]
        sys.argv = [
            "flower-superlink",
            *(*options, "--isolation", "subprocess", "--host", "127.0.0.1"),
            *("--port", str(port), "--disable-runtime-dependency-installation"),
        ]
        flower_superlink()


if __name__ == "__main__":
    main()
