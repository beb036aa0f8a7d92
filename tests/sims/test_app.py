"""The main job's ServerApp: what a failed round tells its user."""

import subprocess
import sys
from pathlib import Path

from protocol.relay import PartyFailedError
from sims.app import _with_reasons
from sims.processes import NodeProcess, NodeProcesses


def test_a_failed_party_s_own_log_gives_the_reason(tmp_path: Path) -> None:
    with NodeProcesses() as processes:
        for party in ("collective", "individual-1", "individual-2", "individual-3"):
            ended = subprocess.Popen([sys.executable, "-c", ""])
            log = tmp_path / f"{party}.log"
            log.write_text(f"2026-11-20 10:00:02,001 ERROR adapt failed: so says {party}\n", encoding="utf-8")
            processes.nodes.append(NodeProcess(party, log, tmp_path / "node.sock", ended))
        (tmp_path / "individual-3.log").unlink()
        failed = PartyFailedError("'adapt' failed", "individual-1", "individual-2", "individual-3")
        told = _with_reasons(failed, processes)
    assert told == (
        "'adapt' failed (individual-1: adapt failed: so says individual-1; "
        "individual-2: adapt failed: so says individual-2)"
    )
    assert _with_reasons(PartyFailedError("'evolve' failed", "nobody"), processes) == "'evolve' failed"
