"""A node's installation: neither the simulations nor their libraries are there, and nodes, courier and relay are."""

import subprocess
import sys

import pytest

ABSENT = ("sims", "ray", "matplotlib", "scipy")

BEFORE = f"""
import sys

class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {ABSENT}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)

sys.meta_path.insert(0, Absent())
"""


def python(text: str) -> subprocess.CompletedProcess[str]:
    """Run ``text`` in an interpreter of its own that finds none of ``ABSENT``."""
    return subprocess.run(
        [sys.executable, "-c", BEFORE + text], capture_output=True, text=True, timeout=300, check=False
    )


def test_nodes_courier_and_relay_need_no_simulations() -> None:
    done = python(
        "import collective_node.program, individual_node.program\n"
        "import protocol.transport.courier, protocol.transport.relay\n"
        "from protocol.commands import learngene as cli\n"
        "sys.argv = ['learngene', '--help']\n"
        "cli.main()\n"
    )
    assert done.returncode == 0, done.stderr
    assert "relay-app" in done.stdout


@pytest.mark.parametrize("name", ABSENT)
def test_what_should_be_absent_is(name: str) -> None:
    done = python(f"import {name}\n")
    assert done.returncode == 1
    assert f"ModuleNotFoundError: No module named '{name}'" in done.stderr
