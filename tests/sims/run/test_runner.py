"""Running and its command line: how a run ends, what is printed, and one line for everything that is wrong."""

import contextlib
import errno
import json
import os
import shlex
import shutil
import signal
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from importlib.util import find_spec
from io import StringIO
from pathlib import Path

import pytest
from rich.console import Console

from protocol.commands import learngene
from protocol.commands.terminal import run_app
from protocol.errors import InputError, RunFailedError, StoppedError
from sims.cifar100.split import CIFAR100
from sims.data.datasets import DATASETS, dataset_name
from sims.data.division import Division
from sims.results import report
from sims.results.collection import collect
from sims.results.summary import summarise
from sims.run import runner
from sims.run.environment import HandedOver
from sims.run.options import Value
from sims.run.run_folder import OpenRun, open_prepared, read_record, read_settings
from sims.run.settings import RunSettings, from_run_config
from tests.sims.made_run import make_run


@pytest.fixture(autouse=True)
def _no_download(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runner, "fetch_published", lambda *where, **how: None)


class MadeFlower:
    """Stands for Flower: what ``work`` does with the settings happens where a ServerApp would do it."""

    def __init__(self, work: object) -> None:
        self.work = work
        self.notice = self.end = ""
        self.closed = 0
        self.nodes = 0
        self.handed = HandedOver(Path())
        self.app = ""

    def __call__(self, app: Path, handed: HandedOver, *, nodes: int, say: Callable[[str], None]) -> "MadeFlower":
        say("it starts")
        assert (app / "pyproject.toml").is_file()
        self.app, self.handed, self.nodes = app.name, handed, nodes
        return self

    def stream(self) -> Iterator[str]:
        yield "Starting"
        if callable(self.work):
            found = read_settings(self.handed.folder).settings
            yield from self.work(found.model_copy(update=asdict(self.handed)))

    def status(self) -> str:
        return "finished:failed"

    def close(self) -> None:
        self.closed += 1


def settings(out: Path, **changes: Value) -> RunSettings:
    return from_run_config({"out": str(out), "profile": "smoke", "individuals": 2, **changes})


def opened(wanted: RunSettings) -> OpenRun:
    """The run in the folder that was handed over."""
    assert wanted.folder is not None
    return open_prepared(wanted.folder, resume=wanted.resume, now=datetime.now(UTC))


def finish(wanted: RunSettings) -> Iterator[str]:
    """A run that comes to its end: the made numbers, moved to where the runner wants them."""
    made = make_run(wanted.out / "made", target_tasks=wanted.options().target_tasks, individuals=2)
    collect(made)
    report.write(made)
    assert wanted.folder is not None
    assert [path.name for path in wanted.folder.iterdir()] == ["settings.json"]
    shutil.rmtree(wanted.folder)
    made.rename(wanted.folder)
    yield "done"


def fail(wanted: RunSettings) -> Iterator[str]:
    """A run whose node died."""
    run = opened(wanted)
    run.update(status="failed", failure="the node individual-1 ended")
    run.close()
    yield "RunFailedError: the node individual-1 ended"


def console() -> Console:
    return Console(file=StringIO(), force_terminal=False)


def test_a_finished_run_gives_its_folder_and_results(tmp_path: Path) -> None:
    flower = MadeFlower(finish)
    folder, results = runner.run(settings(tmp_path), console(), submit=flower)
    assert flower.nodes == 3
    assert flower.closed == 1
    assert folder.parent == tmp_path
    assert results.methods["condensed"][10].tasks == 4
    assert (folder / "flower.log").read_text(encoding="utf-8") == "Starting\ndone\n"


@pytest.mark.parametrize("dataset", DATASETS)
def test_each_dataset_has_its_own_app_and_names_its_runs(tmp_path: Path, dataset: str) -> None:
    division = DATASETS[dataset_name(dataset)].division or Division(tuple("abcde"), ("f",), tuple("ghijk"))
    data = tree(tmp_path / "data", division, base=210)
    wanted = settings(tmp_path / "out", dataset=dataset, data=str(data), individuals=1)
    flower = MadeFlower(fail)
    with pytest.raises(RunFailedError):
        runner.run(wanted, console(), submit=flower)
    assert flower.app == dataset
    [folder] = (tmp_path / "out").iterdir()
    assert folder.name.endswith(f"-{dataset}")


def test_a_failed_run_says_why_and_how_to_go_on(tmp_path: Path) -> None:
    flower = MadeFlower(fail)
    with pytest.raises(RunFailedError, match=r"individual-1 ended.*--resume") as caught:
        runner.run(settings(tmp_path), console(), submit=flower)
    assert flower.closed == 1
    assert "\n" not in str(caught.value)


def test_a_run_that_died_without_a_word_is_marked_and_can_be_resumed(tmp_path: Path) -> None:
    def die(wanted: RunSettings) -> Iterator[str]:
        opened(wanted).close()
        yield "Killed"

    with pytest.raises(RunFailedError, match="ended without a word"):
        runner.run(settings(tmp_path), console(), submit=MadeFlower(die))
    [folder] = tmp_path.iterdir()
    record = read_record(folder)
    assert record.status == "failed"

    def resume(wanted: RunSettings) -> Iterator[str]:
        run = opened(wanted)
        assert run.record.run_id == record.run_id
        run.update(status="failed", failure="again")
        run.close()
        yield ""

    with pytest.raises(RunFailedError, match="again"):
        runner.run(settings(tmp_path, resume=True), console(), submit=MadeFlower(resume))


#: As Flower writes it where Ray does not start: the cause comes first, and what it led to last.
CRASH = """\
ERROR :     An exception occured!! no room
ERROR :     Traceback (most recent call last):
  File "raybackend.py", line 119, in init_ray
    ray.init(
Exception: the raylet has no room for its store

The above exception was the direct cause of the following exception:

Traceback (most recent call last):
  File "run_simulation.py", line 347, in _main_loop
    raise RuntimeError("An error was encountered.")
RuntimeError: An error was encountered. Ending simulation.
protocol.errors.RunFailedError: Flower has ended the run"""


def test_where_ray_fails_its_own_reason_is_told_and_recorded(tmp_path: Path) -> None:
    def crash(wanted: RunSettings) -> Iterator[str]:
        run = opened(wanted)
        run.end("Flower has ended the run")  # all that the app learns
        run.close()
        yield from CRASH.splitlines()

    with pytest.raises(RunFailedError, match="the raylet has no room for its store") as caught:
        runner.run(settings(tmp_path), console(), submit=MadeFlower(crash))
    assert "Ending simulation" not in str(caught.value)
    [folder] = tmp_path.iterdir()
    record = read_record(folder)
    assert record.status == "failed"
    assert "no room for its store" in (record.failure or "")


def test_a_run_that_never_started_shows_the_reason_in_flowers_log(tmp_path: Path) -> None:
    def refuse(wanted: RunSettings) -> Iterator[str]:
        yield "Traceback (most recent call last):"
        yield "protocol.errors.RunFailedError: Flower is out of order"
        yield "exit"

    with pytest.raises(RunFailedError, match="did not start: Flower is out of order"):
        runner.run(settings(tmp_path), console(), submit=MadeFlower(refuse))


@pytest.mark.parametrize("started", [False, True])
def test_what_only_the_serverapp_finds_wrong_is_wrong_input_all_the_same(tmp_path: Path, started: bool) -> None:
    def refuse(wanted: RunSettings) -> Iterator[str]:
        if started:
            run = opened(wanted)
            run.update(status="failed", failure="apple/1.png is 8x8 pixels")
            run.close()
        yield "Traceback (most recent call last):"
        yield "protocol.errors.InputError: apple/1.png is 8x8 pixels"
        yield "exit"

    with pytest.raises(InputError, match=r"^apple/1\.png is 8x8 pixels; the folder of this attempt is ") as caught:
        runner.run(settings(tmp_path), console(), submit=MadeFlower(refuse))
    [folder] = tmp_path.iterdir()
    assert str(caught.value).endswith(str(folder))
    assert "protocol.errors.InputError" in (folder / "flower.log").read_text(encoding="utf-8")


def test_a_finished_run_is_not_refused_for_what_its_log_says(tmp_path: Path) -> None:
    def finish_all_the_same(wanted: RunSettings) -> Iterator[str]:
        yield from finish(wanted)
        yield "protocol.errors.InputError: too late"

    folder, _ = runner.run(settings(tmp_path), console(), submit=MadeFlower(finish_all_the_same))
    assert read_record(folder).status == "finished"


def start(wanted: RunSettings) -> Iterator[str]:
    """A run of which only its folder is there."""
    opened(wanted).close()
    yield "world made"


def finish_in_its_folder(wanted: RunSettings) -> Iterator[str]:
    yield from start(wanted)
    assert wanted.folder is not None
    (wanted.folder / "run.json").write_text(
        (wanted.folder / "run.json").read_text().replace('"running"', '"finished"'), encoding="utf-8"
    )


#: What was done when the signal came: what is left, and what the line says.
MOMENTS: Mapping[str, tuple[object, str | None, str]] = {
    "before Ray is up": (None, None, "before anything was done"),
    "during training": (start, "failed", "what is done is kept in"),
    "after the report": (finish_in_its_folder, "finished", "finished all the same"),
}


class Impatient(MadeFlower):
    """Whose user sends a signal while the run is ended."""

    def __init__(self, work: object, number: signal.Signals, closed: threading.Event) -> None:
        super().__init__(work)
        self.number, self.event = number, closed

    def close(self) -> None:
        os.kill(os.getpid(), self.number)
        time.sleep(0.1)
        super().close()
        self.event.set()


@pytest.mark.parametrize("moment", MOMENTS)
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_an_interrupted_run_is_closed_and_says_so(tmp_path: Path, moment: str, number: signal.Signals) -> None:
    work, status, said = MOMENTS[moment]

    def interrupted(wanted: RunSettings) -> Iterator[str]:
        if callable(work):
            yield from work(wanted)
        os.kill(os.getpid(), number)
        closed.wait(60)
        yield ""

    closed = threading.Event()
    before = signal.signal(number, signal.default_int_handler)
    flower = Impatient(interrupted, number, closed)
    try:
        with pytest.raises(StoppedError, match=said) as caught:
            runner.run(settings(tmp_path), console(), submit=flower)
        assert signal.getsignal(number) == signal.default_int_handler
    finally:
        signal.signal(number, before)
    assert caught.value.exit_code == 128 + number
    assert flower.closed == 1
    folders = list(tmp_path.iterdir())
    if status is None:
        assert folders == []
        return
    [folder] = folders
    assert str(folder) in str(caught.value)
    record = read_record(folder)
    assert record.status == status
    assert (record.failure == runner.Interruption.REASONS[number]) == (status == "failed")
    # The command that it names goes on with this folder, and with no finished one.
    command_line = str(caught.value).partition("go on with: ")[2]
    assert ("--resume" in command_line) == (status == "failed")
    if command_line:
        assert resumed_by(command_line) == folder


def resumed_by(command_line: str) -> Path:
    """The folder that a command line goes on with, as `--dry-run` says it."""
    with contextlib.redirect_stdout(StringIO()) as out:
        assert command(*shlex.split(command_line)[1:], "--dry-run") == 0
    return Path([line for line in out.getvalue().splitlines() if line.startswith("folder ")][-1].split(maxsplit=1)[1])


def test_a_signal_that_is_ignored_stays_ignored(tmp_path: Path) -> None:
    def go_on(wanted: RunSettings) -> Iterator[str]:
        os.kill(os.getpid(), signal.SIGHUP)
        time.sleep(0.5)
        yield from fail(wanted)

    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with pytest.raises(RunFailedError, match="individual-1 ended"):
            runner.run(settings(tmp_path), console(), submit=MadeFlower(go_on))
    finally:
        signal.signal(signal.SIGHUP, before)


def test_ctrl_c_while_a_run_is_ended_does_not_undo_the_ending(tmp_path: Path) -> None:
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    flower = Impatient(finish, signal.SIGINT, threading.Event())
    try:
        with pytest.raises(StoppedError, match="finished all the same"):
            runner.run(settings(tmp_path), console(), submit=flower)
    finally:
        signal.signal(signal.SIGINT, before)
    assert flower.closed == 1


def test_what_a_run_s_own_app_wrote_stays_and_what_ended_flower_is_told(tmp_path: Path) -> None:
    for work, reason in ((fail, "the node individual-1 ended"), (start, "Flower's SuperLink was killed by signal 9")):
        flower = MadeFlower(work)
        flower.end = "Flower's SuperLink was killed by signal 9"
        with pytest.raises(RunFailedError, match=rf"{reason}.*--resume"):
            runner.run(settings(tmp_path / work.__name__), console(), submit=flower)
        [folder] = (tmp_path / work.__name__).iterdir()
        assert read_record(folder).failure == reason


def test_an_app_that_is_killed_ends_the_run_before_flower_finds_out(tmp_path: Path) -> None:
    closed = threading.Event()

    class Unaware(MadeFlower):
        def close(self) -> None:
            closed.set()

    def die(wanted: RunSettings) -> Iterator[str]:
        yield from start(wanted)  # it goes on by its record, and nobody holds its lock
        closed.wait(60)

    with pytest.raises(RunFailedError, match=r"without a word.*--resume"):
        runner.run(settings(tmp_path), console(), submit=Unaware(die))
    assert closed.is_set()
    [folder] = tmp_path.iterdir()
    assert read_record(folder).status == "failed"


def test_a_run_whose_app_works_on_is_followed(tmp_path: Path) -> None:
    """The control."""

    def work(wanted: RunSettings) -> Iterator[str]:
        run = opened(wanted)
        time.sleep(1.0)  # several looks
        run.update(status="failed", failure="the node individual-1 ended")
        run.close()
        yield ""

    with pytest.raises(RunFailedError, match="individual-1 ended"):
        runner.run(settings(tmp_path), console(), submit=MadeFlower(work))


@pytest.mark.parametrize("name", ["results", "report"])
def test_a_file_of_a_run_stands_for_the_run(tmp_path: Path, name: str, capsys: pytest.CaptureFixture[str]) -> None:
    made = make_run(tmp_path / "made")
    collect(made)
    (made / "report.html").write_text("", encoding="utf-8")
    assert command(name, str(made)) == 0
    expected = capsys.readouterr().out
    assert command(name, str(made / "report.html")) == 0
    assert capsys.readouterr().out == expected
    (tmp_path / "report.html").touch()
    assert command(name, str(tmp_path / "report.html")) == 2
    assert len(capsys.readouterr().err.strip().splitlines()) == 1


def test_a_resumed_run_that_fails_as_before_is_not_advised_to_be_resumed(tmp_path: Path) -> None:
    with pytest.raises(RunFailedError, match="--resume"):
        runner.run(settings(tmp_path), console(), submit=MadeFlower(fail))
    with pytest.raises(RunFailedError, match="individual-1 ended") as caught:
        runner.run(settings(tmp_path, resume=True), console(), submit=MadeFlower(fail))
    assert "--resume" not in str(caught.value)


def test_a_resumed_run_that_never_came_to_its_app_says_how_it_ended(tmp_path: Path) -> None:
    with pytest.raises(RunFailedError):
        runner.run(settings(tmp_path), console(), submit=MadeFlower(fail))
    flower = MadeFlower(None)
    flower.end = "Flower's SuperLink ended with exit code 1"
    with pytest.raises(RunFailedError, match="exit code 1"):
        runner.run(settings(tmp_path, resume=True), console(), submit=flower)
    [folder] = tmp_path.iterdir()
    assert read_record(folder).failure == flower.end


def test_on_a_full_disk_the_record_says_why_all_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_place(*given: object, **named: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    class Closing(MadeFlower):
        def close(self) -> None:
            monkeypatch.setattr(tempfile, "mkstemp", no_place)

    with pytest.raises(RunFailedError, match=r"flower\.log: No space left on device") as caught:
        runner.run(settings(tmp_path), console(), submit=Closing(start))
    assert "\n" not in str(caught.value)
    assert "--resume" in str(caught.value)
    [folder] = tmp_path.iterdir()
    record = read_record(folder)
    assert record.status == "failed"
    assert record.failure is not None
    assert record.failure in str(caught.value)


def test_a_reserved_folder_that_was_not_used_is_removed(tmp_path: Path) -> None:
    def refuse(app: Path, handed: HandedOver, **more: object) -> MadeFlower:
        raise RunFailedError("Flower cannot be started")

    with pytest.raises(RunFailedError, match="cannot be started"):
        runner.run(settings(tmp_path), console(), submit=refuse)
    assert list(tmp_path.iterdir()) == []


def test_a_named_folder_is_not_overwritten(tmp_path: Path) -> None:
    (tmp_path / "mine").write_text("", encoding="utf-8")
    with pytest.raises(InputError, match="not empty"):
        runner.run(settings(tmp_path, folder=str(tmp_path)), console(), submit=MadeFlower(finish))


def test_the_summary_takes_runs_as_its_samples(tmp_path: Path) -> None:
    runs = [(folder, collect(folder)) for folder in (make_run(tmp_path / str(seed), seed=seed) for seed in (0, 1, 2))]
    found = summarise(runs).methods["condensed"][10]
    means = [results.methods["condensed"][10].mean for _, results in runs]
    assert found.per_run == tuple(means)
    assert found.runs == 3
    from scipy import stats

    interval = stats.ttest_1samp(means, 0).confidence_interval(0.95)
    assert found.ci95_seeds == pytest.approx((interval.high - interval.low) / 2)


# ------------------------------------------------------------------------------------------------------------------
# The command line


def command(*arguments: str) -> int:
    with pytest.raises(SystemExit) as caught:
        run_app(learngene.make(), list(arguments))
    return int(caught.value.code or 0)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["run", "mnist"], "mnist"),
        (["run"], "SIMULATION"),
        (["run", "cifar100", "--profil", "quick"], "--profil"),
        (["run", "cifar100", "--profile", "huge"], "huge"),
        (["run", "cifar100", "--data", "/no/such/folder"], "/no/such/folder"),
        (["run", "cifar100", "--shots", "ten"], "ten"),
        (["run", "cifar100", "--width", "0"], "width"),
        (["run", "cifar100", "--tasks", "many"], "many"),
        (["run", "cifar100", "--individuals", "0"], "individuals"),
        (["run", "cifar100", "--seed", "1", "--seeds", "1,2"], "--seeds"),
        (["run", "cifar100", "--seeds", "1,1"], "twice"),
        (["run", "cifar100", "--seeds", "1,b"], "1,b"),
        (["run", "cifar100", "--seeds", "1,2", "--resume"], "--resume"),
        (["run", "cifar100", "--collective-device", "gpu"], "gpu"),
        (["run", "cifar100", "--resume", "--out", "/no/such/folder"], "no unfinished run"),
        (["run", "cifar100", "--shots", "10,0"], "10,0"),
        (["run", "cifar100", "--target-tasks", "10:40:3"], "10:40:3"),
        (["run", "cifar100", "--target-tasks", "many"], "many"),
        (["run", "cifar100", "--set", "individual.retian=3"], "individual.retian"),
        (["run", "cifar100", "--set", "individual.retain_weight"], "individual.retain_weight"),
        (["run", "cifar100", "--set", "individual.retain_weight=low"], "individual.retain_weight"),
        (["run", "cifar100", "--individual-device", "mps"], "mps"),
        (["run", "cifar100", "--stand-in", "--data", "/"], "exclude each other"),
        (["run", "cifar100", "--stand-in", "--shots", "501"], "501"),
        (["run", "cifar100", "--stand-in", "--shots", "300", "--individuals", "2"], "300 are needed"),
        (["run", "cifar100", "--stand-in", "--target-tasks", "1", "--individuals", "2"], "2 individuals"),
        (["world"], "command"),
        (["run", "imagenet100"], "ImageNet100 cannot be downloaded"),
        (["run", "imagenet100", "--data", "/no/such/folder"], "/no/such/folder"),
        (["run", "imagenet100", "--stand-in", "--data", "/"], "exclude each other"),
        (["run", "imagenet100", "--stand-in", "--shots", "501"], "501"),
        (["run", "folder"], "split.json"),
        (["run", "folder", "--stand-in"], "no stand-in"),
        (["run", "folder", "--data", "/usr"], "holds no split.json"),
        (["run", "cifar100", "--set", "collective.expansion=widen two"], "is no growth step"),
        (["run", "cifar100", "--set", "collective.expansion='paper"], "growth step"),
        (["run", "cifar100", "--stand-in", "--set", "collective.classes_per_task=65"], "64"),
        (["world", "make"], "DATASET"),
        (["world", "make", "imagenet100", "--out", "/w"], "ImageNet100 cannot be downloaded"),
        (["world", "make", "folder", "--out", "/w", "--data", "/usr"], "holds no split.json"),
        (["world", "make", "cifar100", "--out", "/w", "--stand-in", "--data", "/"], "exclude each other"),
        (["world", "make", "cifar100", "--out", "/w", "--data", "/no/such/folder"], "/no/such/folder"),
        (["world", "make", "cifar100", "--out", "/usr", "--stand-in"], "/usr exists already"),
        (["world", "make", "cifar100", "--out", "/w", "--stand-in", "--individuals", "41"], "41 individuals"),
        (["world", "make", "cifar100", "--stand-in"], "--out"),
        (["world", "make", "mnist", "--out", "/w"], "mnist"),
        (["results", "/no/such/folder"], "/no/such/folder"),
        (["report", "/no/such/folder"], "/no/such/folder"),
    ],
)
def test_wrong_input_is_one_clear_line_and_exit_code_2(
    arguments: list[str], said: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("LEARNGENE_DATA", raising=False)
    assert command(*arguments) == 2
    captured = capsys.readouterr()
    assert said in captured.err
    assert len(captured.err.strip().splitlines()) == 1
    assert len(captured.err) < 500
    assert captured.out == ""


@pytest.mark.parametrize("arguments", [["run", "cifar100"], ["results", "x"], ["report", "x"], ["world", "make", "-x"]])
@pytest.mark.parametrize("missing", ["ray", "scipy", "matplotlib", "jinja2"])
def test_without_the_extra_every_command_says_what_to_install(
    arguments: list[str], missing: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "protocol.commands.lazy_group.find_spec", lambda name: None if name == missing else find_spec(name)
    )
    assert command(*arguments) == 2
    said = capsys.readouterr().err
    assert f"the module {missing}; install it with: pip install 'learngene[sim]'" in said
    assert len(said.strip().splitlines()) == 1


def tree(root: Path, division: Division = CIFAR100, *, base: int = 20) -> Path:
    """A folder tree with 20 files a class, which nobody gets to open, and its division as a split; ``base``: training
    files of a base class."""
    for part in ("train", "test"):
        for name in division.classes:
            (root / part / name).mkdir(parents=True)
            for number in range(base if part == "train" and name in division.base else 20):
                (root / part / name / f"{number}.png").touch()
    (root / "split.json").write_text(json.dumps(asdict(division)), encoding="utf-8")
    return root


@pytest.fixture
def _never_started(monkeypatch: pytest.MonkeyPatch) -> None:
    def submit(app: Path, handed: HandedOver, **more: object) -> MadeFlower:
        raise AssertionError("started")

    monkeypatch.setitem(runner.run.__kwdefaults__ or {}, "submit", submit)


@pytest.mark.usefixtures("_never_started")
@pytest.mark.parametrize("given", ["by flag", "by environment"])
@pytest.mark.parametrize(
    ("remove", "said"),
    [
        ("train", "neither train/ and test/"),
        ("train/apple", "lacks 1 of 100 class folders: apple"),
        ("test/worm", "lacks 1 of 100 class folders: worm"),
        ("train/apple/1*.png", "class apple has 9 usable train images; 10 are needed"),
        ("train/worm/7.png", "novel class worm has 19 usable train images"),
        ("test/sea/*.png", "sea holds no images"),
    ],
)
def test_a_folder_with_too_little_is_refused_before_anything_is_started(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    given: str,
    remove: str,
    said: str,
) -> None:
    monkeypatch.delenv("LEARNGENE_DATA", raising=False)
    data, out = tree(tmp_path / "data"), tmp_path / "out"
    for path in list(data.glob(remove)):
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    if given == "by flag":
        arguments = ["--data", str(data), "--out", str(out)]
    else:
        monkeypatch.setenv("LEARNGENE_DATA", str(data))
        arguments = ["--out", str(out)]
    for command_line in (["run", "cifar100", *arguments], ["world", "make", "cifar100", *arguments]):
        assert command(*command_line) == 2
        captured = capsys.readouterr()
        assert said in captured.err
        assert len(captured.err.strip().splitlines()) == 1
        assert captured.out == ""
        assert not out.exists()


def test_enough_images_are_not_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    flower = MadeFlower(finish)
    data = tree(tmp_path / "data", base=110)
    runner.run(settings(tmp_path / "out", data=str(data), individuals=1), console(), submit=flower)
    assert flower.closed == 1


@pytest.mark.usefixtures("_never_started")
def test_a_world_from_which_no_learngene_could_be_published_is_said_to_be_one_before_anything_is_started(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """64 base classes of 10 images: fewer than a Fisher diagonal takes that may leave a site."""
    data, out = tree(tmp_path / "data", base=10), tmp_path / "out"
    assert command("run", "cifar100", "--profile", "smoke", "--data", str(data), "--out", str(out)) == 2
    said = capsys.readouterr().err
    assert "1024" in said
    assert len(said.splitlines()) == 1
    assert not out.exists()
    # Cutting the world says so as well. (The files hold no images, so that it then ends.)
    assert command("world", "make", "cifar100", "--data", str(data), "--out", str(out), "--target-tasks-20", "0") == 2
    assert "640 training images" in capsys.readouterr().err.splitlines()[0]


_PRIVATE = (
    "collective.forms=condensed",
    "collective.privacy_epsilon=8",
    "collective.privacy_scope=fisher-given-weights",
)


@pytest.mark.usefixtures("_never_started")
@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (("individual.early_stopping=5",), "early_stopping"),
        (("collective.layers=30",), "layers"),
        (("collective.expansion=widen 40 +64",), "expansion"),
        ((*_PRIVATE, "collective.privacy_delta_exponent=3"), "delta"),
    ],
)
def test_what_the_nodes_would_refuse_after_hours_is_refused_before_anything_is_started(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], changes: Sequence[str], said: str
) -> None:
    out = tmp_path / "out"
    options = ["--profile", "smoke", "--shots", "1", "--stand-in", "--out", str(out)]
    assert command("run", "cifar100", *options, *(f"--set={change}" for change in changes)) == 2
    captured = capsys.readouterr().err
    assert said in captured
    assert len(captured.splitlines()) == 1
    assert not out.exists()


@pytest.mark.usefixtures("_never_started")
def test_privacy_without_its_extra_is_refused_before_anything_is_started(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sims.run.settings.find_spec", lambda name: None)
    options = ("--stand-in", "--out", str(tmp_path / "out"))
    assert command("run", "cifar100", *options, *(f"--set={change}" for change in _PRIVATE)) == 2
    assert "learngene[privacy]" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("base", ["abcd", "abcde"])
def test_a_split_with_fewer_base_classes_than_a_task_is_refused(tmp_path: Path, base: str) -> None:
    division = Division(tuple(base), ("f",), tuple("ghijk"))
    data = tree(tmp_path / "data", division, base=210)
    wanted = settings(tmp_path / "out", dataset="folder", data=str(data), individuals=1)
    said = r"a task of 5 classes needs as many base classes; there are 4" if base == "abcd" else "individual-1 ended"
    with pytest.raises((InputError, RunFailedError), match=said):
        runner.run(wanted, console(), submit=MadeFlower(fail))


def test_the_paper_profile_without_cuda_is_wrong_input(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sims.run.settings._cuda_devices", lambda: 0)
    assert command("run", "cifar100", "--profile", "paper") == 2
    assert "CUDA" in capsys.readouterr().err


def test_a_dry_run_says_everything_and_does_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "runs"
    arguments = [
        "--out",
        str(out),
        "--data",
        str(tmp_path),
        "--individuals",
        "2",
        "--shots",
        "10",
        "--target-tasks",
        "5",
    ]
    assert command("run", "cifar100", "--dry-run", *arguments) == 0
    said = capsys.readouterr().out
    for part in (
        str(out),
        str(tmp_path),
        "5 at 10 shots (3 + 2)",
        "individual-2",
        "collective.width",
        "nothing was run",
    ):
        assert part in said
    assert not out.exists()


def test_the_environment_names_the_data_and_help_says_so(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LEARNGENE_DATA", str(tmp_path))
    assert command("run", "cifar100", "--dry-run") == 0
    assert str(tmp_path) in capsys.readouterr().out
    # An explicit request for the stand-in outranks it, however it is spelt there.
    monkeypatch.setenv("LEARNGENE_DATA", f"{tmp_path}/")
    assert command("run", "cifar100", "--dry-run", "--stand-in") == 0
    assert str(tmp_path) not in capsys.readouterr().out
    assert command("run", "--help") == 0
    assert "LEARNGENE_DATA" in capsys.readouterr().out


def test_a_failed_run_exits_with_1(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(runner.run.__kwdefaults__ or {}, "submit", MadeFlower(fail))
    assert command("run", "cifar100", "--profile", "smoke", "--out", str(tmp_path)) == 1
    assert capsys.readouterr().err.strip().splitlines()[-1].startswith("error: the run failed: the node individual-1")


def test_several_seeds_end_in_one_table(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(runner.run.__kwdefaults__ or {}, "submit", MadeFlower(finish))
    assert command("run", "cifar100", "--profile", "smoke", "--out", str(tmp_path), "--seeds", "0,1") == 0
    said = capsys.readouterr().out
    assert said.count("report.html") == 4  # name and path, for each of the two
    [path] = tmp_path.glob("*-seeds/summary.json")
    assert str(path) in said.replace("\n", "")
    assert len(json.loads(path.read_text(encoding="utf-8"))["runs"]) == 2


def test_results_and_report_of_an_existing_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = make_run(tmp_path, source="stand-in")
    results = collect(folder)
    assert command("results", str(folder)) == 0
    said = capsys.readouterr().out
    assert f"{results.methods['condensed'][10].mean:.1f} ± " in said
    assert "NOT CIFAR-100" in " ".join(said.split())
    assert command("report", str(folder)) == 0
    assert (folder / "report.html").is_file()
