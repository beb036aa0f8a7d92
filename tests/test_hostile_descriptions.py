"""Hostile descriptions of a model, a split, a run, from somebody else: one line, exit code 2, and nothing is made."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from individual_node.cli import app as individual_app
from protocol.commands.learngene import make
from sims.results.collection import collect
from tests.individual_node.test_user_commands import model, node, pictures  # noqa: F401 - fixtures
from tests.sims.made_run import make_run
from tests.two_folders import Done, refused, run, succeeded

ESCAPE = "\x1b]0;mine\x07"

#: Of any kind of file: nothing that this version writes.
CONTENTS: dict[str, bytes] = {
    "deep lists": b"[" * 100_000,
    "deep objects": b'{"a":' * 5000 + b"1" + b"}" * 5000,
    "no UTF-8": b"\xff\xfe{}",
    "nothing": b"",
    "a huge number": b'{"format": ' + b"9" * 6000 + b"}",
    "a hostile key": json.dumps({ESCAPE * 1000: 1}).encode(),
    "half a character": b'{"classes": ["\\ud800"]}',
    "a list": b"[1, 2]",
}


def changed(path: Path, change: Callable[[Any], object]) -> None:
    found = json.loads(path.read_bytes())
    change(found)
    path.write_text(json.dumps(found), encoding="utf-8")


def one_line(done: Done) -> None:
    refused(done)
    assert len(done.err) < 1000
    assert "\x1b" not in done.err


@pytest.fixture(scope="module")
def control(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:  # noqa: F811 - the fixture
    """A copy of the model, which as it is can be used."""
    copy = Path(shutil.copytree(model, tmp_path_factory.mktemp("control") / "model"))
    succeeded(run(individual_app, "export", copy, "--onnx", copy.parent / "control.onnx"))
    return copy


@pytest.fixture
def copied(control: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(control, tmp_path / "model"))


@pytest.mark.parametrize("content", CONTENTS)
def test_a_model_s_description(copied: Path, content: str) -> None:
    (copied / "model.json").write_bytes(CONTENTS[content])
    one_line(run(individual_app, "export", copied, "--onnx", copied / "out.onnx"))
    assert not (copied / "out.onnx").exists()


@pytest.mark.parametrize(
    "change",
    [
        lambda d: d["classes"].__setitem__(0, ESCAPE * 500),
        lambda d: d["classes"].__setitem__(0, ""),
        lambda d: d.update(method="x" * 5000),
        lambda d: d.update(network="individual", own={"front": None, "back": None, "hidden": 10**9}),
        lambda d: d.update(network="individual", own={"front": None, "back": None, "hidden": -1}),
        lambda d: d.update(network="individual", own={"front": None, "back": None, "hidden": 10**30}),
        lambda d: d["architecture"]["blocks"][0].update(out_channels=4096),
        lambda d: d.update({ESCAPE: 1}),
    ],
)
def test_a_model_that_asks_for_what_it_does_not_hold(copied: Path, change: Callable[[Any], object]) -> None:
    changed(copied / "model.json", change)
    one_line(run(individual_app, "export", copied, "--onnx", copied / "out.onnx"))


@pytest.mark.parametrize("name", ["model.json", "model.safetensors"])
def test_a_model_s_file_that_is_none(copied: Path, name: str) -> None:
    (copied / name).unlink()
    os.mkfifo(copied / name)
    one_line(run(individual_app, "export", copied, "--onnx", copied / "out.onnx"))


@pytest.mark.parametrize(
    "content",
    [
        *CONTENTS.values(),
        b'{"base": ["a", "b"], "open_world": ["c"], "novel": ["d", "' + b"e" * 5000 + b'"]}',
        json.dumps({"base": [ESCAPE * 20] * 2, "open_world": ["c"], "novel": ["d", "e"]}).encode(),
        json.dumps({"base": ["a", "b"], "open_world": ["c"], "novel": ["d", "e"], ESCAPE: 1}).encode(),
    ],
)
def test_a_split(tmp_path: Path, content: bytes) -> None:
    for name in "abcde":
        (tmp_path / "images" / name).mkdir(parents=True)
    (tmp_path / "images" / "split.json").write_bytes(content)
    one_line(run(make(), "world", "make", "folder", "--data", tmp_path / "images", "--out", tmp_path / "world"))
    assert not (tmp_path / "world").exists()


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = make_run(tmp_path_factory.mktemp("runs"))
    collect(folder)
    return folder


@pytest.mark.parametrize("command", ["results", "report"])
@pytest.mark.parametrize("content", CONTENTS)
def test_a_run_s_results(finished: Path, tmp_path: Path, command: str, content: str) -> None:
    copy = Path(shutil.copytree(finished, tmp_path / "run"))
    (copy / "results.json").write_bytes(CONTENTS[content])
    one_line(run(make(), command, copy))


@pytest.mark.parametrize(
    "change",
    [
        lambda d: d["dataset"].update(name=ESCAPE),
        lambda d: d["dataset"].update(name="$\\frac{1}{0}$"),
        lambda d: d["methods"].update({"$x$": d["methods"]["floor"]}),
        lambda d: d["methods"].update({ESCAPE * 1000: d["methods"]["floor"]}),
        lambda d: d["methods"]["floor"]["10"]["per_task"].pop(),
        lambda d: d["methods"]["floor"]["10"].update(tasks=10**30),
        lambda d: d["curves"]["scratch"]["10"]["accuracy"].pop(),
        lambda d: d["collective"]["gradient_trend"]["layers"].__setitem__(0, "$\\frac{$"),
        lambda d: d["collective"]["gradient_trend"]["rho"][0].pop(),
        lambda d: d["collective"]["criterion"]["settled"].pop(),
        lambda d: d["collective"]["criterion"].update(chosen=[-1]),
        lambda d: d["nodes"].update({ESCAPE: {}}),
        lambda d: d["crossings"][0].update(kind=ESCAPE),
        lambda d: d.update({ESCAPE: 1}),
    ],
)
def test_results_that_do_not_fit_together(finished: Path, tmp_path: Path, change: Callable[[Any], object]) -> None:
    copy = Path(shutil.copytree(finished, tmp_path / "run"))
    changed(copy / "results.json", change)
    for command in ("results", "report"):
        one_line(run(make(), command, copy))


def test_a_page_shows_hostile_sentences_and_is_not_made_of_them(finished: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(finished, tmp_path / "run"))
    hostile = f"<script>alert(1)</script>{ESCAPE}\u202egnp $x$"

    def put(found: Any) -> None:  # noqa: ANN401 - JSON
        found["dataset"]["notice"] = hostile
        found["nodes"]["collective"]["confinement"] = hostile
        found["collective"]["tasks"][0]["classes"][0] = hostile
        found["versions"][hostile] = hostile

    changed(copy / "results.json", put)
    succeeded(run(make(), "report", copy))
    page = (copy / "report.html").read_text(encoding="utf-8")
    assert "<script>" not in page
    assert not set("\x1b\x07\u202e") & set(page)
    assert page.count("&lt;script&gt;alert(1)&lt;/script&gt;\\x1b]0;mine\\x07\\u202egnp $x$") >= 5
    assert "data:image/png;base64," in page
