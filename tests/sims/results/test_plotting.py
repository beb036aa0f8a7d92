"""Figures are drawn with Matplotlib's own settings, whatever lies in the working folder or in the user's home."""

import hashlib
import os
import subprocess
import sys
from pathlib import Path

import pytest

#: Draws one figure and prints its digest; with the word "plain", by an import of Matplotlib as it is.
DRAW = """
import hashlib, sys
from io import BytesIO
if "plain" in sys.argv:
    import matplotlib
    from matplotlib.figure import Figure
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    as_delivered = lambda draw: draw
else:
    from sims.results.plotting import Figure, FigureCanvasAgg, as_delivered
if "set before" in sys.argv:
    import matplotlib
    matplotlib.rcParams["axes.facecolor"] = "red"
@as_delivered
def draw():
    figure = Figure(figsize=(2, 2))
    figure.subplots().plot([1, 2])
    FigureCanvasAgg(figure)
    buffer = BytesIO()
    figure.savefig(buffer, format="png", metadata={"Software": None})
    return buffer.getvalue()
print(hashlib.sha256(draw()).hexdigest())
"""
NO_TEXT = b"axes.facecolor: \xff\xfe\n"
RED = b"axes.facecolor: red\nfigure.dpi: 20\n"


def drawn(*words: str, folder: Path, home: Path, **environment: str) -> "subprocess.CompletedProcess[str]":
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("MATPLOTLIB", "MPL", "XDG"))}
    return subprocess.run(
        [sys.executable, "-c", DRAW, *words],
        cwd=folder,
        env={**kept, "HOME": str(home), **environment},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One home for all: Matplotlib makes its list of fonts there."""
    return tmp_path_factory.mktemp("home")


@pytest.fixture(scope="module")
def expected(home: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The digest where nothing is set anywhere."""
    done = drawn(folder=tmp_path_factory.mktemp("empty"), home=home)
    assert len(done.stdout.strip()) == hashlib.sha256().digest_size * 2, done.stderr
    return done.stdout


@pytest.mark.parametrize("place", ["the working folder", "the home", "the variable"])
@pytest.mark.parametrize("content", [RED, NO_TEXT], ids=["red", "no text"])
def test_no_settings_file_is_read(tmp_path: Path, home: Path, expected: str, place: str, content: bytes) -> None:
    own = home / ".config" / "matplotlib"
    own.mkdir(parents=True, exist_ok=True)
    file = {"the working folder": tmp_path, "the home": own, "the variable": tmp_path / "elsewhere"}[place]
    file.mkdir(exist_ok=True)
    file /= "matplotlibrc"
    file.write_bytes(content)
    given = {"MATPLOTLIBRC": str(file)} if place == "the variable" else {}
    try:
        control = drawn("plain", folder=tmp_path, home=home, **given)
        done = drawn(folder=tmp_path, home=home, **given)
    finally:
        file.unlink()
    assert (control.returncode, control.stdout) != (0, expected)
    assert (done.returncode, done.stdout, done.stderr) == (0, expected, "")


def test_a_window_system_that_there_is_not_is_not_asked_for(tmp_path: Path, expected: str) -> None:
    given = {"MPLBACKEND": "nonsense"}
    control = drawn("plain", folder=tmp_path, home=tmp_path, **given)
    done = drawn(folder=tmp_path, home=tmp_path, **given)
    assert control.returncode != 0
    assert (done.returncode, done.stdout, done.stderr) == (0, expected, "")


def test_a_home_that_cannot_be_written_is_done_without(tmp_path: Path, expected: str) -> None:
    done = drawn(folder=tmp_path, home=Path("/dev/null"))
    assert (done.returncode, done.stdout, done.stderr) == (0, expected, "")


def test_a_pipe_in_place_of_the_file_holds_nobody_up(tmp_path: Path, home: Path, expected: str) -> None:
    os.mkfifo(tmp_path / "matplotlibrc")
    assert drawn(folder=tmp_path, home=home).stdout == expected


def test_what_the_program_around_has_set_does_not_show(tmp_path: Path, home: Path, expected: str) -> None:
    assert drawn("set before", folder=tmp_path, home=home).stdout == expected
    assert drawn("plain", "set before", folder=tmp_path, home=home).stdout != expected


def test_matplotlib_is_imported_in_one_place_only() -> None:
    """Where another module imports it first, its settings are read."""
    root = Path(__file__).parents[3]
    packages = ("protocol", "collective_node", "individual_node", "sims")
    importing = {
        path.relative_to(root).as_posix()
        for package in packages
        for path in (root / package).rglob("*.py")
        if any(
            line.split()[:1] in (["import"], ["from"]) and "matplotlib" in line for line in path.read_text().split("\n")
        )
    }
    assert importing == {"sims/results/plotting.py"}
