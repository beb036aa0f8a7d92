"""A ``results.json`` of somebody else's: refused in one line where no table or figure can be made of it."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from protocol.errors import InputError
from sims.results import report
from sims.results.collection import collect
from sims.results.figures import gradient_trend_figure
from sims.results.models import load
from tests.sims.made_run import edit, make_run

Change = Callable[[Any], object]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, bytes]:
    """A run's folder, and its good results."""
    folder = make_run(tmp_path_factory.mktemp("runs"))
    collect(folder)
    return folder, (folder / "results.json").read_bytes()


def repeated(entries: dict[str, Any], count: int) -> None:
    """Give an object so many entries more, all of them equal to its first."""
    first = next(iter(entries.values()))
    entries.update({str(1000 + number): first for number in range(count)})


def trend(document: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = document["collective"]["gradient_trend"]
    return found


HOSTILE: dict[str, Change] = {
    "many methods": lambda d: repeated(d["methods"], 200),
    "many counts of shots": lambda d: repeated(d["methods"]["paper"], 20),
    "many layers": lambda d: trend(d).update(layers=["x"] * 1000, rho=[[0.5]] * 1000),
    "many tasks": lambda d: d["collective"].update(tasks=d["collective"]["tasks"][:1] * 3000),
    "many columns": lambda d: trend(d).update(rho=[[0.5] * 3000] * len(trend(d)["layers"])),
    "many cycles": lambda d: d["collective"]["open_world"].update(cycles=d["collective"]["open_world"]["cycles"] * 100),
    "a long list": lambda d: d["methods"]["paper"]["10"].update(per_task=[1.0] * 100_001),
    "a long method": lambda d: d["methods"].update({"x" * 200: d["methods"]["paper"]}),
    "a long dataset": lambda d: d["dataset"].update(name="x" * 200),
    "a negative interval": lambda d: d["methods"]["paper"]["10"].update(ci95_tasks=-1.0),
    "a negative interval over classes": lambda d: d["paired"]["condensed-paper"]["10"].update(ci95_classes=-1.0),
    "an interval of an earlier format": lambda d: d["methods"]["paper"]["10"].update(ci95=1.0),
    "classes of a task too few": lambda d: d["task_classes"].pop(),
    "a task without classes": lambda d: d["task_classes"].__setitem__(0, []),
    "many classes": lambda d: d["task_classes"].__setitem__(0, [str(number) for number in range(2000)]),
    "many target tasks": lambda d: d.update(
        methods={"paper": {"10": {**d["methods"]["paper"]["10"], "tasks": 30_000, "per_task": [1.0] * 30_000}}},
        task_classes=[["0", "1"]] * 30_000,
    ),
    "a class that is no name": lambda d: d["task_classes"][0].__setitem__(0, "\x1b[31m"),
    "an infinite interval": lambda d: d["methods"]["paper"]["10"].update(ci95_classes=float("inf")),
    "a curve of two lengths": lambda d: d["curves"]["paper"]["10"].update(epochs=[1, 2]),
    "no known class": lambda d: d["collective"]["tasks"][0].update(known=0),
    "a long name of a layer": lambda d: trend(d)["layers"].__setitem__(0, "x" * 200),
    "rows of two lengths": lambda d: trend(d)["rho"][0].pop(),
    "a row less": lambda d: trend(d)["rho"].pop(),
    "a layer that is not there": lambda d: d["collective"]["criterion"].update(chosen=[10**9]),
    "the layer nought": lambda d: d["collective"]["criterion"].update(chosen=[0]),
    "a settled layer less": lambda d: d["collective"]["criterion"]["settled"].pop(),
    "another word": lambda d: d.update(more=1),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_attack_results_that_do_not_fit_are_one_line(made: tuple[Path, bytes], name: str) -> None:
    folder, good = made
    (folder / "results.json").write_bytes(good)
    load(folder)
    edit(folder / "results.json", HOSTILE[name])
    with pytest.raises(InputError) as caught:
        load(folder)
    assert str(folder / "results.json") in str(caught.value)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 1000


RAW = {
    "deep": b"[" * 100_000,
    "deep in an object": b'{"a":' * 10_000,
    "no JSON": b"\x00\xff",
    "empty": b"",
    "a list": b"[]",
    "a key twice": b'{"format": 1, "format": 1}',
}


@pytest.mark.parametrize("name", RAW)
def test_attack_what_is_no_results_at_all(made: tuple[Path, bytes], name: str) -> None:
    folder = made[0]
    (folder / "results.json").write_bytes(RAW[name])
    with pytest.raises(InputError, match=r"results\.json") as caught:
        load(folder)
    assert "\n" not in str(caught.value)


def test_attack_results_that_are_no_file_or_endless(made: tuple[Path, bytes]) -> None:
    path = made[0] / "results.json"
    with path.open("wb") as sparse:
        sparse.truncate(1 << 40)
    with pytest.raises(InputError, match="at most"):
        load(made[0])
    for make in (os.mkfifo, os.mkdir, lambda name: os.symlink("/dev/zero", name)):
        path.unlink() if not path.is_dir() else path.rmdir()
        make(path)
        with pytest.raises(InputError, match=r"results\.json"):
            load(made[0])
    path.unlink()


def test_a_dollar_sign_in_a_name_is_no_formula(tmp_path: Path) -> None:
    folder = make_run(tmp_path)
    found = collect(folder)
    before = found.collective.gradient_trend
    assert before is not None
    named = before.model_copy(update={"layers": (r"$\frac{$", *before.layers[1:])})
    # Matplotlib would take it for the beginning of one, and fail.
    odd = found.model_copy(update={"collective": found.collective.model_copy(update={"gradient_trend": named})})
    assert gradient_trend_figure(odd)
    edit(folder / "results.json", lambda d: trend(d)["layers"].__setitem__(0, r"$\frac{$"))
    with pytest.raises(InputError, match="layers"):
        load(folder)


def test_attack_a_figure_that_is_a_link_to_a_private_file(tmp_path: Path) -> None:
    folder = make_run(tmp_path)
    collect(folder)
    (tmp_path / "private").write_text("a secret")
    (folder / "accuracy_against_epsilon.png").symlink_to(tmp_path / "private")
    with pytest.raises(InputError, match=r"accuracy_against_epsilon\.png is no PNG"):
        report.write(folder)
    assert not (folder / "report.html").exists()
