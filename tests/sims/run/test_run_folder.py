"""Run folders: never shared, never overwritten, found again to be resumed."""

import errno
import fcntl
import os
import subprocess
import sys
from datetime import timedelta
from pathlib import Path

import pytest

from protocol.errors import InputError
from sims.data.division_choice import OWN
from sims.results.models import load
from sims.run.run_folder import (
    OpenRun,
    is_locked,
    latest_unfinished,
    read_record,
    read_settings,
    reserve_folder,
    resume_folder,
    why_unfinished,
)
from sims.run.settings import RunSettings, from_run_config
from tests.sims.made_run import NOW, edit, open_run


def settings(out: Path, **changes: object) -> RunSettings:
    return from_run_config({"out": str(out), "profile": "smoke"}).model_copy(update=changes)


def start(wanted: RunSettings, later: int = 0) -> OpenRun:
    return open_run(wanted, now=NOW + timedelta(seconds=later))


def test_a_new_run_has_a_folder_of_its_own_named_by_its_time(tmp_path: Path) -> None:
    runs = [start(settings(tmp_path)) for _ in range(3)]
    names = [run.folder.name for run in runs]
    assert names == ["20260102-030405-cifar100", "20260102-030405-cifar100-2", "20260102-030405-cifar100-3"]
    assert len({run.record.run_id for run in runs}) == 3
    assert read_record(runs[0].folder).status == "running"
    assert read_settings(runs[0].folder).settings == settings(tmp_path)
    assert all(run.folder.stat().st_mode & 0o777 == 0o700 for run in runs)


def test_a_folder_that_holds_something_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("keep", encoding="utf-8")
    with pytest.raises(InputError, match="not empty"):
        start(settings(tmp_path, folder=tmp_path))
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


def test_an_empty_reserved_folder_is_used(tmp_path: Path) -> None:
    folder = reserve_folder(tmp_path, "cifar100", NOW)
    assert start(settings(tmp_path, folder=folder)).folder == folder


def test_resume_keeps_the_run_id_and_takes_the_latest_that_fits(tmp_path: Path) -> None:
    ids = {}
    for later, (seed, status) in enumerate([(0, "failed"), (0, "running"), (0, "finished"), (1, "failed")]):
        run = start(settings(tmp_path, seed=seed), later)
        run.update(status=status, failure="why", seconds={"world": 1.0})  # type: ignore[arg-type]
        run.close()
        ids[later] = run.record.run_id
    resumed = start(settings(tmp_path, resume=True), 9)
    assert resumed.record.run_id == ids[1]
    assert (resumed.record.status, resumed.record.failure) == ("running", None)
    resumed.update(status="finished", seconds={"total": 2.0})
    assert read_record(resumed.folder).seconds == {"world": 1.0, "total": 2.0}
    resumed.close()
    assert start(settings(tmp_path, resume=True), 9).record.run_id == ids[0]


def test_nothing_to_resume_is_said(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no unfinished run"):
        latest_unfinished(settings(tmp_path / "nowhere"))
    run = start(settings(tmp_path))
    with pytest.raises(InputError, match="no unfinished run"):  # it is going on
        latest_unfinished(settings(tmp_path))
    run.update(status="finished")
    run.close()
    with pytest.raises(InputError, match="finished already"):
        resume_folder(settings(tmp_path, folder=run.folder, resume=True))


def test_a_run_is_not_resumed_with_other_settings(tmp_path: Path) -> None:
    run = start(settings(tmp_path))
    run.close()
    with pytest.raises(InputError, match="seed"):
        start(settings(tmp_path, folder=run.folder, resume=True, seed=5))


def test_a_run_of_one_division_is_not_resumed_as_one_of_another(tmp_path: Path) -> None:
    own, tuning, other = (
        settings(tmp_path, division=name, division_seed=seed)
        for name, seed in (("own", 0), ("tuning", 0), ("tuning", 1))
    )
    run = start(tuning)
    run.close()
    for wanted in (own, other):
        with pytest.raises(InputError, match="no unfinished run with these settings"):
            latest_unfinished(wanted)
        with pytest.raises(InputError, match=r"made with other settings \(division"):
            resume_folder(wanted.model_copy(update={"folder": run.folder, "resume": True}))
    assert latest_unfinished(tuning) == run.folder


def test_settings_of_an_earlier_version_have_the_datasets_own_division(tmp_path: Path) -> None:
    run = start(settings(tmp_path))
    run.close()
    edit(run.folder / "settings.json", lambda d: [d["settings"].pop(name) for name in ("division", "division_seed")])
    assert read_settings(run.folder).settings.choice == OWN
    assert resume_folder(settings(tmp_path, folder=run.folder, resume=True)) == run.folder


def test_only_one_process_works_on_a_run(tmp_path: Path) -> None:
    run = start(settings(tmp_path))
    assert is_locked(run.folder)
    with pytest.raises(InputError, match="another process"):
        start(settings(tmp_path, folder=run.folder, resume=True))
    run.close()
    assert not is_locked(run.folder)


@pytest.mark.parametrize("kind", ["pipe", "link to nothing", "link to a file"])
def test_what_stands_in_place_of_the_lock_is_neither_waited_for_nor_followed(tmp_path: Path, kind: str) -> None:
    run, elsewhere = start(settings(tmp_path / "runs")), tmp_path / "elsewhere"
    run.close()
    lock = run.folder / "lock"
    lock.unlink()
    if kind == "pipe":
        os.mkfifo(lock)
    else:
        lock.symlink_to(elsewhere)
    if kind == "link to a file":
        elsewhere.write_text("kept")
    for attempt in (is_locked, lambda folder: start(settings(tmp_path, folder=folder, resume=True))):
        with pytest.raises(InputError, match="the run's lock"):
            attempt(run.folder)
    assert not elsewhere.exists() if kind != "link to a file" else elsewhere.read_text() == "kept"


def test_the_lock_ends_with_the_process_that_was_killed(tmp_path: Path) -> None:
    code = (
        "import os, signal, sys; from tests.sims.run.test_run_folder import settings, start; from pathlib import Path\n"
        "run = start(settings(Path(sys.argv[1]))); os.kill(os.getpid(), signal.SIGKILL)"
    )
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=False, cwd=Path(__file__).parents[3])
    [folder] = tmp_path.iterdir()
    assert read_record(folder).status == "running"
    OpenRun.end_abandoned(folder, "killed")
    assert read_record(folder).failure == "killed"
    start(settings(tmp_path, resume=True)).close()


def test_a_folder_that_cannot_be_written_is_wrong_input(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_text("", encoding="utf-8")
    with pytest.raises(InputError, match="cannot write"):
        reserve_folder(file / "runs", "cifar100", NOW)


def test_a_run_whose_every_process_was_ended_does_not_go_on_by_its_record(tmp_path: Path) -> None:
    """As when the machine goes off: nothing of the run is left that could write down its end."""
    run = start(settings(tmp_path))
    assert why_unfinished(run.folder) == "it is not finished yet"
    assert read_record(run.folder).status == "running"
    run.close()
    said = why_unfinished(run.folder)
    record = read_record(run.folder)
    assert record.status == "failed"
    assert record.failure is not None
    assert record.failure in said
    assert latest_unfinished(settings(tmp_path)) == run.folder


def test_a_run_that_said_why_it_failed_is_asked_for_its_results(tmp_path: Path) -> None:
    run = start(settings(tmp_path))
    run.end("the disk of the collective is full")
    run.close()
    with pytest.raises(InputError, match="the disk of the collective is full"):
        load(run.folder)
    assert why_unfinished(tmp_path) == ""
    assert list(tmp_path.glob("*.lock")) + list(tmp_path.glob("lock")) == []


def test_a_file_system_without_locks_is_not_taken_for_another_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(file: object, how: int) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", refuse)
    with pytest.raises(InputError, match="has no locks"):
        start(settings(tmp_path))
