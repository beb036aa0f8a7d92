"""Tests of the guard on imports: in a party's process the other party's package and the simulations do not exist."""

import subprocess
import sys

import pytest

PARTIES = ("collective_node", "individual_node")


def python(text: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", text], capture_output=True, text=True, timeout=60, check=False)


@pytest.mark.parametrize("own", PARTIES)
@pytest.mark.parametrize("package", [*PARTIES, "sims"])
@pytest.mark.parametrize(
    "how",
    [
        "import {package}",
        "from {package} import *",
        "import importlib; importlib.import_module('{package}')",
        "import importlib.util; importlib.util.find_spec('{package}')",
        "__import__('{package}.' + {{'sims': 'commands'}}.get('{package}', 'cli'))",
    ],
)
def test_only_the_own_package_can_be_imported(own: str, package: str, how: str) -> None:
    code = how.format(package=package)
    free = python(code)
    # The control: without the guard, each import works.
    assert free.returncode == 0, free.stderr
    held = python(f"from protocol.node import import_guard; import_guard.install({own!r}); {code}")
    if package == own:
        assert held.returncode == 0, held.stderr
    else:
        assert held.returncode == 1
        last = held.stderr.splitlines()[-1]
        assert last == (
            f"ImportError: a process of {own} must not import {package}: the parties' code stays apart; "
            "start it in its own process"
        )


@pytest.mark.parametrize(("own", "other"), [PARTIES, PARTIES[::-1]])
def test_what_is_there_already_is_refused_at_installation(own: str, other: str) -> None:
    text = "import sys\nfrom protocol.node import import_guard\n{}\nimport_guard.install({!r})\nprint('installed')"
    assert python(text.format("", own)).stdout == "installed\n"
    assert python(text.format(f"import {own}", own)).stdout == "installed\n"
    done = python(text.format(f"import {other}", own))
    assert done.returncode == 1
    assert f"must not import {other}" in done.stderr


def test_a_process_stays_the_party_that_it_was() -> None:
    text = "from protocol.node.import_guard import install; import sys; n = len(sys.meta_path); install('sims'); {}"
    again = python(text.format("install('sims'); print(len(sys.meta_path) - n)"))
    assert again.stdout == "1\n"
    assert "cannot become one of individual_node" in python(text.format("install('individual_node')")).stderr


@pytest.mark.parametrize(("own", "other"), [PARTIES, PARTIES[::-1]])
def test_the_console_script_and_the_launcher_hold_to_it(own: str, other: str) -> None:
    """Each as it is started, up to the point where a foreign import is tried."""
    started = (
        f"import sys, {own}.cli as cli\n"
        f"cli.run_app = lambda app: __import__({other!r})\n"
        "cli.main()\n"
    )  # fmt: skip
    done = python(started)
    assert f"a process of {own} must not import {other}" in done.stderr
    launched = (
        "from pathlib import Path\n"
        "from protocol.node import launcher\n"
        f"launcher.read = lambda path: __import__({other!r})\n"
        f"launcher.launch(Path('none'), None, '{own}.configuration:None', 'none')\n"
    )
    assert f"a process of {own} must not import {other}" in python(launched).stderr
