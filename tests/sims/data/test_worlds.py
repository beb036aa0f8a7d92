"""Cutting a dataset: no picture in two parties' folders, right labels everywhere, the same bytes for the same seed."""

import hashlib
import json
import os
from collections import Counter
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
import typer
from pydantic import ValidationError
from typer.testing import CliRunner

from protocol.errors import InputError
from sims.cifar100.split import CIFAR100
from sims.data import glyphs, worlds
from sims.data.division import Division
from sims.data.images import ImageSet, ImageSource, load_source
from sims.data.world_command import register
from sims.data.world_plan import WorldPlan
from sims.data.worlds import load_world, make_world
from tests.sims.made_tree import make_tree

DIVISION = Division(base=("e", "a", "c", "b"), open_world=("f", "d"), novel=("k", "g", "i", "h"))
CLASSES = ("a", "b", "c", "d", "e", "f", "g", "h", "i", "k", "unused")  # the source's own order is another one
TRAIN, TEST = 24, 9
PLAN = WorldPlan(individuals=2, ways=3, target_tasks={4: 5, 2: 7}, fewest_train_images=5, fewest_test_images=2)


def make_source(seed: int = 0) -> ImageSource:
    """Random 4x4 pictures whose first value is their class, so that labels can be checked in any folder."""
    rng = np.random.default_rng(seed)

    def images(each: int) -> ImageSet:
        labels = rng.permutation(np.arange(len(CLASSES)).repeat(each))
        pixels = rng.integers(0, 256, (len(labels), 4, 4, 3), dtype=np.uint8)
        pixels[:, 0, 0, 0] = labels
        return ImageSet(pixels, labels)

    return ImageSource("letters", "folder", CLASSES, DIVISION, images(TRAIN), images(TEST), "made for a test")


def files_of(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def digests_of(path: Path) -> list[str]:
    return [hashlib.sha256(picture.tobytes()).hexdigest() for picture in np.load(path)]


def manifest_of(folder: Path) -> dict:
    return json.loads((folder / "manifest.json").read_text())


def names_in(path: Path) -> list[str]:
    """Class names of the pictures in a file, from the pictures themselves."""
    return [CLASSES[value] for value in np.load(path)[:, 0, 0, 0]]


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> worlds.World:
    return make_world(make_source(), DIVISION, PLAN, 3, tmp_path_factory.mktemp("worlds") / "world")


def assert_disjoint(world: worlds.World) -> Counter[str]:
    """No picture in two parties' folders, none twice in one; returns the count of all pictures."""
    everything: Counter[str] = Counter()
    for party in world.parties:
        for path in world.folder_of(party).rglob("*_images.npy"):
            everything.update(digests_of(path))
    assert max(everything.values()) == 1
    return everything


def test_no_picture_is_in_two_places(world: worlds.World) -> None:
    everything = assert_disjoint(world)
    # 4 base and 2 open-world classes whole; of 4 novel classes what divides by two individuals.
    assert everything.total() == 6 * (TRAIN + TEST) + 4 * (TRAIN + TEST - 1)


def test_the_collectives_labels_are_right(world: worlds.World) -> None:
    folder = world.folder_of("collective")
    manifest = manifest_of(folder)
    assert tuple(manifest["classes"]) == DIVISION.base
    assert tuple(manifest["human_classes"]) == DIVISION.base + DIVISION.open_world
    for images, labels, classes in (
        ("train_images", "train_labels", "classes"),
        ("heldout_images", "heldout_labels", "classes"),
        ("stream_images", "human/stream_labels", "human_classes"),
        ("human/heldout_images", "human/heldout_labels", "human_classes"),
    ):
        numbers = np.load(folder / f"{labels}.npy")
        assert numbers.dtype == np.int64
        assert names_in(folder / f"{images}.npy") == [manifest[classes][number] for number in numbers]
    assert Counter(names_in(folder / "train_images.npy")) == dict.fromkeys(DIVISION.base, TRAIN)
    assert Counter(names_in(folder / "heldout_images.npy")) == dict.fromkeys(DIVISION.base, TEST // 2)
    assert Counter(names_in(folder / "human" / "heldout_images.npy")) == dict.fromkeys(DIVISION.open_world, TEST)
    stream = names_in(folder / "stream_images.npy")
    expected = dict.fromkeys(DIVISION.base, TEST - TEST // 2) | dict.fromkeys(DIVISION.open_world, TRAIN)
    assert Counter(stream) == expected
    known = [name in DIVISION.base for name in stream]
    assert known != sorted(known)  # mixed: the order tells nothing
    assert known != sorted(known, reverse=True)


def test_labels_of_the_stream_lie_with_the_human_only(world: worlds.World) -> None:
    folder = world.folder_of("collective")
    assert {path.name for path in folder.iterdir()} == {
        "manifest.json", "train_images.npy", "train_labels.npy", "heldout_images.npy", "heldout_labels.npy",
        "stream_images.npy", "human",
    }  # fmt: skip


def test_an_individuals_labels_are_right(world: worlds.World) -> None:
    for party in world.individuals:
        folder = world.folder_of(party)
        classes = manifest_of(folder)["classes"]
        assert tuple(classes) == DIVISION.novel
        for part, each in (("support", TRAIN // 2), ("test", TEST // 2)):
            names = names_in(folder / f"{part}_images.npy")
            assert names == [classes[number] for number in np.load(folder / f"{part}_labels.npy")]
            assert Counter(names) == dict.fromkeys(DIVISION.novel, each)


def tasks_of(world: worlds.World, party: str) -> list[dict]:
    return json.loads((world.folder_of(party) / "tasks.json").read_text())["tasks"]


def test_tasks_are_dealt_in_turn(world: worlds.World) -> None:
    assert [task["task"] for task in tasks_of(world, "individual-1")] == [0, 2, 4, 6]
    assert [task["task"] for task in tasks_of(world, "individual-2")] == [1, 3, 5]


def test_a_tasks_rows_are_of_its_classes(world: worlds.World) -> None:
    for party in world.individuals:
        support = np.load(world.folder_of(party) / "support_labels.npy")
        test = np.load(world.folder_of(party) / "test_labels.npy")
        for task in tasks_of(world, party):
            classes = task["classes"]
            assert len(set(classes)) == PLAN.ways
            for shots, rows in task["support"].items():
                assert support[rows].tolist() == np.repeat(classes, int(shots)).tolist()
                assert len(set(rows)) == len(rows)
            assert test[task["test"]].tolist() == np.repeat(classes, TEST // 2).tolist()
            assert len(set(task["test"])) == len(task["test"])


def test_shot_counts_stop_where_the_plan_says_and_fewer_shots_are_the_first_of_more(world: worlds.World) -> None:
    for party in world.individuals:
        for task in tasks_of(world, party):
            assert set(task["support"]) == ({"2", "4"} if task["task"] < 5 else {"2"})
            if "4" in task["support"]:
                two, four = (np.reshape(task["support"][shots], (PLAN.ways, -1)) for shots in ("2", "4"))
                np.testing.assert_array_equal(two, four[:, :2])


def test_a_task_has_as_many_test_images_as_the_plan_says(world: worlds.World, tmp_path: Path) -> None:
    fewer = make_world(make_source(), DIVISION, PLAN.model_copy(update={"test_images": 2}), 3, tmp_path / "fewer")
    assert (world.description.test_images, fewer.description.test_images) == (None, 2)
    drawn: set[tuple[int, ...]] = set()
    for party in world.individuals:
        test = np.load(fewer.folder_of(party) / "test_labels.npy")
        for task, whole in zip(tasks_of(fewer, party), tasks_of(world, party), strict=True):
            assert {**task, "test": None} == {**whole, "test": None}  # classes and support images stay the same
            assert test[task["test"]].tolist() == np.repeat(task["classes"], 2).tolist()
            assert len(set(task["test"])) == len(task["test"])
            assert set(task["test"]) < set(whole["test"])
            drawn.add(tuple(task["test"]))
    assert len(drawn) == PLAN.tasks  # drawn anew for each task


def test_the_classes_of_a_task_do_not_depend_on_the_number_of_individuals(world: worlds.World, tmp_path: Path) -> None:
    alone = make_world(make_source(), DIVISION, PLAN.model_copy(update={"individuals": 1}), 3, tmp_path / "alone")
    ours = {task["task"]: task["classes"] for party in world.individuals for task in tasks_of(world, party)}
    assert ours == {task["task"]: task["classes"] for task in tasks_of(alone, "individual-1")}


def test_manifests_hold_the_digest_of_every_file(world: worlds.World) -> None:
    for party in world.parties:
        files = files_of(world.folder_of(party))
        manifest = json.loads(files.pop("manifest.json"))
        assert manifest["files"] == {name: hashlib.sha256(data).hexdigest() for name, data in files.items()}
        assert manifest["party"] == party
        assert manifest["seed"] == 3
        assert manifest["dataset"] == {"name": "letters", "source": "folder"}
        assert manifest["image"] == {"height": 4, "width": 4, "channels": 3}
        for part, count in manifest["counts"].items():
            name = part.replace("human_", "human/")
            assert len(np.load(world.folder_of(party) / f"{name}_images.npy")) == count


def test_folders_are_closed_to_others(world: worlds.World) -> None:
    for party in world.parties:
        for path in (world.folder_of(party), *world.folder_of(party).rglob("*")):
            assert path.stat().st_mode & 0o777 == (0o700 if path.is_dir() else 0o600)


def test_the_seed_decides_every_byte(world: worlds.World, tmp_path: Path) -> None:
    again = make_world(make_source(), DIVISION, PLAN, 3, tmp_path / "again")
    other = make_world(make_source(), DIVISION, PLAN, 4, tmp_path / "other")
    assert files_of(again.folder) == files_of(world.folder)
    ours, theirs = files_of(world.folder), files_of(other.folder)
    for name in ("collective/stream_images.npy", "individual-1/support_images.npy", "individual-1/tasks.json"):
        assert ours[name] != theirs[name]


def test_recurring_pictures_are_dropped_or_kept_once(tmp_path: Path) -> None:
    source = make_source()
    train, test = source.train.images, source.test.images

    def rows(images: ImageSet, name: str) -> list[int]:
        return np.flatnonzero(images.labels == CLASSES.index(name)).tolist()

    in_train = {name: rows(source.train, name) for name in CLASSES}
    in_test = {name: rows(source.test, name) for name in CLASSES}
    across_roles = train[in_train["k"][0]] = train[in_train["a"][0]]  # novel and base
    across_parts = test[in_test["g"][1]] = train[in_train["g"][1]]  # novel train and novel test
    across_base_parts = test[in_test["b"][1]] = train[in_train["b"][1]]
    train[in_train["c"][2]] = train[in_train["a"][2]]  # two base classes
    train[in_train["a"][3]] = train[in_train["a"][2]]  # a third time
    kept_once = train[in_train["a"][2]]
    beside = train[in_train["unused"][0]] = train[in_train["e"][5]]  # a class outside the division does not count
    world = make_world(source, DIVISION, PLAN, 0, tmp_path / "world")
    found = assert_disjoint(world)
    digest = {
        name: hashlib.sha256(picture.tobytes()).hexdigest()
        for name, picture in {
            "roles": across_roles, "parts": across_parts, "base parts": across_base_parts, "once": kept_once,
            "beside": beside,
        }.items()
    }  # fmt: skip
    assert [found[digest[name]] for name in ("roles", "parts", "base parts", "once", "beside")] == [0, 0, 0, 1, 1]
    assert world.description.duplicates == worlds.Duplicates(dropped=6, repeated=2)


def test_where_copies_are_why_images_do_not_suffice_that_is_said(tmp_path: Path) -> None:
    """A folder copied under another name: every picture is of two classes."""
    made = make_source()
    for part in (made.train, made.test):
        original, copy = (np.flatnonzero(part.labels == CLASSES.index(name)) for name in ("k", "g"))
        part.images[copy] = part.images[original]
    with pytest.raises(InputError, match=f"{TRAIN + TEST} further copies"):
        make_world(made, DIVISION, PLAN, 0, tmp_path / "world")


def test_a_world_is_never_overwritten(world: worlds.World, tmp_path: Path) -> None:
    before = files_of(world.folder)
    with pytest.raises(InputError, match="exists already"):
        make_world(make_source(), DIVISION, PLAN, 9, world.folder)
    assert files_of(world.folder) == before
    (tmp_path / "file").write_text("mine")
    (tmp_path / "dangling").symlink_to(tmp_path / "nowhere")
    for taken in ("file", "dangling"):
        with pytest.raises(InputError, match="exists already"):
            make_world(make_source(), DIVISION, PLAN, 0, tmp_path / taken)
    (tmp_path / "empty").mkdir()
    assert make_world(make_source(), DIVISION, PLAN, 0, tmp_path / "empty").parties[0] == "collective"


def test_a_failure_on_the_way_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A disk that is full after some files."""
    written: list[int] = []

    def full(descriptor: int) -> None:
        written.append(descriptor)
        if len(written) == 5:
            raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(InputError, match="No space left on device"):
        make_world(make_source(), DIVISION, PLAN, 0, tmp_path / "world")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"individuals": 7}, r"novel class k has 24 usable train images, 3 for each of 7 individuals; 4 are needed"),
        ({"individuals": 5}, r"novel class k has 9 usable test images, 1 for each of 5 individuals; 2 are needed"),
        ({"individuals": 8}, r"8 individuals but 7 target tasks"),
        ({"test_images": 5}, r"novel class k has 9 usable test images, 4 for each of 2 individuals; 5 are needed"),
        ({"ways": 5}, r"a 5-way task needs 5 novel classes; there are 4"),
        ({"fewest_train_images": 25}, r"class e has 24 usable train images; 25 are needed"),
    ],
)
def test_too_little_for_the_plan_is_one_clear_line(tmp_path: Path, change: dict[str, int], message: str) -> None:
    plan = PLAN.model_copy(update=change)
    with pytest.raises(InputError, match=message) as caught:
        make_world(make_source(), DIVISION, plan, 0, tmp_path / "world")
    assert "\n" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_a_missing_class_and_a_bad_seed_are_refused(tmp_path: Path) -> None:
    division = Division(base=("zebra",), open_world=("d",), novel=DIVISION.novel)
    with pytest.raises(InputError, match="zebra"):
        make_world(make_source(), division, PLAN, 0, tmp_path / "world")
    with pytest.raises(InputError, match="seed"):
        make_world(make_source(), DIVISION, PLAN, -1, tmp_path / "world")


@pytest.mark.parametrize("wrong", [{"individuals": 0}, {"target_tasks": {}}, {"target_tasks": {0: 4}}, {"other": 1}])
def test_a_plan_is_checked(wrong: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        WorldPlan.model_validate(wrong)


def test_a_class_has_one_role() -> None:
    with pytest.raises(ValueError, match="'a' stands twice"):
        Division(base=("a",), open_world=("b",), novel=("a",))


def test_the_paper_divides_cifar100_into_64_16_and_20() -> None:
    assert [len(names) for names in (CIFAR100.base, CIFAR100.open_world, CIFAR100.novel)] == [64, 16, 20]
    assert "cattle" in CIFAR100.open_world


def test_a_world_is_found_again(world: worlds.World, tmp_path: Path) -> None:
    assert load_world(world.folder) == world
    with pytest.raises(InputError, match="is not a world"):
        load_world(tmp_path)
    with pytest.raises(ValueError, match="individual-3"):
        world.folder_of("individual-3")


@pytest.fixture
def application(monkeypatch: pytest.MonkeyPatch) -> typer.Typer:
    monkeypatch.setattr(glyphs, "TRAIN_PER_CLASS", 40)
    monkeypatch.setattr(glyphs, "TEST_PER_CLASS", 20)
    monkeypatch.delenv("LEARNGENE_DATA", raising=False)
    app = typer.Typer()
    register(app)
    app.command("other")(lambda: None)
    return app


def test_the_command_cuts_and_says_that_the_images_are_a_stand_in(application: typer.Typer, tmp_path: Path) -> None:
    out = tmp_path / "world"
    arguments = ["world", "make", "cifar100", "--stand-in", "--out", str(out), "--individuals", "2", "--seed", "5"]
    result = CliRunner().invoke(application, arguments)
    assert result.exit_code == 0, result.output
    assert "NOT CIFAR-100" in result.output
    world = load_world(out)
    assert "NOT CIFAR-100" in world.notice
    assert world.description.dataset == worlds.Dataset(name="glyphs", source="stand-in")
    assert (world.description.seed, world.individuals) == (5, ("individual-1", "individual-2"))
    assert manifest_of(world.folder_of("individual-1"))["classes"][0] == "glyph_080"
    again = CliRunner().invoke(application, arguments)
    assert isinstance(again.exception, InputError)


def test_the_command_cuts_a_folder_of_ones_own(application: typer.Typer, tmp_path: Path) -> None:
    division = Division(base=("a", "b"), open_world=("c",), novel=("d", "e", "f"))
    make_tree(tmp_path / "mine", division, parts=(".",), each=60, size=(20, 30))
    (tmp_path / "mine" / "split.json").write_text(json.dumps({**asdict(division), "size": 40}), encoding="utf-8")
    arguments = ["world", "make", "folder", "--data", str(tmp_path / "mine"), "--out", str(tmp_path / "world")]
    result = CliRunner().invoke(application, [*arguments, "--ways", "3", "--target-tasks-20", "0"])
    assert result.exit_code == 0, result.output
    world = load_world(tmp_path / "world")
    assert world.notice == ""
    assert world.description.dataset == worlds.Dataset(name="mine", source="folder")
    manifest = manifest_of(world.folder_of("collective"))
    assert (manifest["classes"], manifest["human_classes"]) == (["a", "b"], ["a", "b", "c"])
    assert manifest["image"] == {"height": 40, "width": 40, "channels": 3}
    # Of 60 images one in six is for testing; half of the base ones of these goes into the stream.
    assert manifest["counts"] == {"train": 100, "heldout": 10, "stream": 10 + 50, "human_heldout": 10}


@pytest.mark.parametrize(
    ("each", "said"), [(1, "class a has 0 usable train images; 10 are needed"), (30, "novel class d has 5 usable test")]
)
def test_the_command_refuses_classes_with_too_few_images(
    application: typer.Typer, tmp_path: Path, each: int, said: str
) -> None:
    division = Division(base=("a", "b"), open_world=("c",), novel=("d", "e"))
    make_tree(tmp_path / "mine", division, parts=(".",), each=each, size=(8, 8))
    (tmp_path / "mine" / "split.json").write_text(json.dumps(asdict(division)), encoding="utf-8")
    arguments = ["world", "make", "folder", "--data", str(tmp_path / "mine"), "--out", str(tmp_path / "world")]
    result = CliRunner().invoke(application, [*arguments, "--ways", "2", "--target-tasks-20", "0"])
    assert isinstance(result.exception, InputError)
    assert said in str(result.exception)
    assert not (tmp_path / "world").exists()


def test_the_command_refuses_absent_data(application: typer.Typer, tmp_path: Path) -> None:
    arguments = ["world", "make", "cifar100", "--out", str(tmp_path / "world")]
    for given in ({"args": [*arguments, "--data", str(tmp_path / "no")]}, {"env": {"LEARNGENE_DATA": "/no/such"}}):
        result = CliRunner().invoke(application, **{"args": arguments, **given})
        assert isinstance(result.exception, InputError)
        assert "no such data folder" in str(result.exception)
    assert list(tmp_path.iterdir()) == []


def test_the_command_wants_a_task(application: typer.Typer, tmp_path: Path) -> None:
    arguments = ["--out", str(tmp_path / "w"), "--target-tasks-10", "0", "--target-tasks-20", "0"]
    result = CliRunner().invoke(application, ["world", "make", "cifar100", *arguments])
    assert result.exit_code == 2


@pytest.mark.slow
@pytest.mark.skipif(not os.environ.get("LEARNGENE_DATA"), reason="LEARNGENE_DATA names no folder of real images")
def test_real_images_are_cut_without_a_picture_in_two_folders(tmp_path: Path) -> None:
    source = load_source(Path(os.environ["LEARNGENE_DATA"]))
    world = make_world(source, source.division, WorldPlan(individuals=3), 0, tmp_path / "world")
    assert_disjoint(world)
    # The published set holds identical pictures; some of them stand in two roles or in train and test.
    assert world.description.duplicates.dropped > 0
    assert world.description.duplicates.repeated > 0
