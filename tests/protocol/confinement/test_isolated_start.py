"""An isolated start: nothing that lies in the working folder, the environment or the state is run."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from protocol.confinement import isolated_start
from protocol.errors import InputError

#: Says that it ran, wherever it was imported from.
PLANTED = "import os, pathlib\npathlib.Path({place!r}).write_text('ran')\n"
#: What a Python that is not isolated imports before, or in place of, a program.
NAMES = (
    "protocol/__init__.py",
    "individual_node/__init__.py",
    "sitecustomize.py",
    "usercustomize.py",
    "json.py",
    "tempfile.py",
)


def plant(folder: Path, place: Path) -> None:
    for name in NAMES:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(PLANTED.format(place=str(place)))


@pytest.mark.parametrize("way", ["working folder", "PYTHONPATH", "PYTHONSTARTUP", "PYTHONUSERBASE"])
def test_nothing_planted_runs(tmp_path: Path, way: str) -> None:
    folder, place = tmp_path / "planted", tmp_path / "ran"
    plant(folder, place)
    packages = folder / f"lib/python{sys.version_info.major}.{sys.version_info.minor}/site-packages"
    plant(packages, place)
    (packages / "evil.pth").write_text(f"import pathlib; pathlib.Path({str(place)!r}).write_text('ran')\n")
    given = {
        "PYTHONPATH": {"PYTHONPATH": str(folder)},
        "PYTHONSTARTUP": {"PYTHONSTARTUP": str(folder / "json.py"), "PYTHONINSPECT": "1"},
        "PYTHONUSERBASE": {"PYTHONUSERBASE": str(folder)},
    }.get(way, {})
    command = isolated_start.command("individual_node", ["--version"])
    environment = isolated_start.environment({**os.environ, **given})
    done = subprocess.run(command, env=environment, cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("learngene ")
    assert not place.exists()
    if way in ("working folder", "PYTHONPATH"):
        # The control: the same program, as it would be started otherwise.
        subprocess.run(
            [sys.executable, "-m", "individual_node", "--version"],
            env={**os.environ, **given},
            cwd=folder,
            capture_output=True,
            check=False,
        )
        assert place.read_text() == "ran"


def test_the_environment_is_written_down() -> None:
    given = {"PATH": "/bin", "LC_ALL": "fa_IR.UTF-8", "CUDA_VISIBLE_DEVICES": "1", "LD_LIBRARY_PATH": "/opt/cuda"}
    others = (
        "PYTHONPATH",
        "PYTHONHOME",
        "LD_PRELOAD",
        "RAY_ADDRESS",
        "http_proxy",
        "SSH_AUTH_SOCK",
        "AWS_SECRET",
        "XDG_RUNTIME_DIR",
    )
    kept = isolated_start.environment({**given, **dict.fromkeys(others, "x")})
    assert {name: kept[name] for name in given} == given
    assert not set(others) & set(kept)


def test_start_goes_on_isolated_in_a_folder_that_nobody_fills() -> None:
    code = (
        "import json, os, sys\n"
        "from protocol.confinement import isolated_start\n"
        "isolated_start.become_isolated('json.tool', ['--help'])\n"
        "print(json.dumps([sys.flags.isolated, os.getcwd()]))\n"
    )
    # Isolated already: it goes on where it is.
    done = subprocess.run([sys.executable, "-I", "-c", code], capture_output=True, text=True, check=True)
    assert json.loads(done.stdout) == [1, "/"]
    # Otherwise it becomes the program that is named.
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.startswith("usage: ")


def test_packages_of_one_user_alone_are_refused_in_one_line(tmp_path: Path) -> None:
    """As ``pip install --user`` puts them; -I does not look there."""
    packages = tmp_path / f"lib/python{sys.version_info.major}.{sys.version_info.minor}/site-packages"
    packages.mkdir(parents=True)
    for name in ("torch", "numpy"):
        (packages / name).mkdir()
        (packages / name / "__init__.py").write_text("")
    code = (
        "import site, sys\n"
        "sys.path.insert(0, site.getusersitepackages()); site.ENABLE_USER_SITE = True\n"
        "from protocol.confinement import isolated_start\n"
        "from protocol.errors import InputError\n"
        "try:\n    isolated_start.check_installation()\nexcept InputError as error:\n    print(error)\n"
    )
    environment = {**os.environ, "PYTHONUSERBASE": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert "for this user alone" in done.stdout
    assert done.stdout.count("\n") == 1
    # The control: as it is installed here.
    try:
        isolated_start.check_installation()
    except InputError:
        pytest.fail("these tests run from such an installation")
