"""The tuning division: base classes alone, divided again by a seed; the dataset's novel classes reach no party."""

import json
from collections import Counter
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
import typer
from typer.testing import CliRunner

from protocol.errors import InputError
from sims.cifar100.split import CIFAR100
from sims.data import glyphs
from sims.data.division import Division
from sims.data.division_choice import OWN, DivisionChoice, tuning_division
from sims.data.images import count_images, draw_stand_in, load_source
from sims.data.world_command import register
from sims.data.worlds import load_world
from sims.imagenet100.split import IMAGENET100
from tests.sims.made_tree import make_tree

TUNING = DivisionChoice(name="tuning", seed=2)
#: 29 base classes, the fewest that can be divided again.
MINE = Division(base=tuple(f"base {n:02d}" for n in range(29)), open_world=("open",), novel=("new 1", "new 2"))


def roles(division: Division) -> list[int]:
    return [len(division.base), len(division.open_world), len(division.novel)]


@pytest.mark.parametrize("own", [CIFAR100, IMAGENET100, glyphs.DIVISION])
def test_64_base_classes_become_48_6_and_10(own: Division) -> None:
    found = tuning_division(own, 0)
    assert roles(found) == [48, 6, 10]
    assert sorted(found.classes) == sorted(own.base)


def test_the_shares_of_other_numbers_are_the_same() -> None:
    def of(count: int) -> list[int]:
        return roles(tuning_division(Division(tuple(map(str, range(count))), (), ()), 0))

    assert of(29) == [21, 3, 5]
    assert of(128) == [96, 12, 20]
    assert of(100) == [75, 9, 16]


def test_the_seed_and_the_names_decide_and_not_their_order() -> None:
    found = tuning_division(CIFAR100, 0)
    again = tuning_division(Division(CIFAR100.base[::-1], CIFAR100.open_world, CIFAR100.novel), 0)
    assert [set(names) for names in (found.base, found.open_world, found.novel)] == [
        set(names) for names in (again.base, again.open_world, again.novel)
    ]
    assert len({frozenset(tuning_division(CIFAR100, seed).novel) for seed in range(20)}) == 20


def test_the_division_of_a_seed_never_changes() -> None:
    """Defaults are chosen on it, so another division under the same name would be another experiment."""
    found = tuning_division(CIFAR100, 0)
    assert found.open_world == ("bowl", "dolphin", "girl", "palm_tree", "plate", "train")
    assert " ".join(found.novel) == "castle cup forest hamster kangaroo rabbit skunk snake tulip turtle"


def test_too_few_base_classes_are_one_line() -> None:
    for count in (2, 28):
        with pytest.raises(InputError, match=rf"so 29 base classes .* there are {count}$") as caught:
            tuning_division(Division(tuple(map(str, range(count))), ("o",), ("n",)), 0)
        assert "\n" not in str(caught.value)


def test_the_datasets_own_division_is_left_as_it_is() -> None:
    assert OWN.apply(CIFAR100) is CIFAR100
    assert (OWN.notice, OWN.dataset_name("cifar100")) == ("", "cifar100")
    assert DivisionChoice(name="tuning").dataset_name("cifar100") != TUNING.dataset_name("cifar100")


def make_folder(root: Path) -> Path:
    """A folder of one's own whose open-world and novel classes hold files that no decoder reads."""
    make_tree(root, MINE, each=20, size=(8, 8))
    (root / "split.json").write_text(json.dumps(asdict(MINE)), encoding="utf-8")
    for part in ("train", "test"):
        for name in MINE.open_world + MINE.novel:
            for file in (root / part / name).iterdir():
                file.write_bytes(b"no picture")
    return root


def test_no_image_of_a_novel_class_of_the_dataset_is_read_or_reaches_a_party(tmp_path: Path) -> None:
    folder = make_folder(tmp_path / "mine")
    app = typer.Typer()
    register(app)
    app.command("other")(lambda: None)
    common = ["--data", str(folder), "--target-tasks-10", "3", "--target-tasks-20", "0"]
    arguments = ["world", "make", "folder", *common, "--division", "tuning", "--division-seed", "2"]
    result = CliRunner().invoke(app, [*arguments, "--out", str(tmp_path / "world")])
    assert result.exit_code == 0, result.output
    assert "TUNING DIVISION (seed 2)" in result.output
    world = load_world(tmp_path / "world")
    assert world.description.division == TUNING
    assert "TUNING DIVISION (seed 2)" in world.notice
    manifests = {p: json.loads((world.folder_of(p) / "manifest.json").read_text()) for p in world.parties}
    expected = tuning_division(MINE, 2)
    assert tuple(manifests["collective"]["human_classes"]) == expected.base + expected.open_world
    assert tuple(manifests["individual-1"]["classes"]) == expected.novel
    counts = {"train": 21 * 20, "heldout": 21 * 10, "stream": 21 * 10 + 3 * 20, "human_heldout": 3 * 20}
    assert manifests["collective"]["counts"] == counts
    assert manifests["individual-1"]["counts"] == {"support": 100, "test": 100}
    # The control: in the dataset's own division the same files are read, and refused.
    own = CliRunner().invoke(app, ["world", "make", "folder", *common, "--ways", "2", "--out", str(tmp_path / "own")])
    assert isinstance(own.exception, InputError)
    assert not (tmp_path / "own").exists()


def test_support_images_come_from_training_images_and_test_images_from_test_images(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And every label still names its own picture: the stand-in's pictures are of known classes."""
    monkeypatch.setattr(glyphs, "TRAIN_PER_CLASS", 6)
    monkeypatch.setattr(glyphs, "TEST_PER_CLASS", 4)
    whole = draw_stand_in("a test")
    found = load_source(stand_in=True, choice=TUNING, cache=tmp_path)
    expected = tuning_division(glyphs.DIVISION, 2)
    assert (found.division, found.choice, found.kind) == (expected, TUNING, "stand-in")
    assert sorted(found.classes) == sorted(glyphs.DIVISION.base)
    assert "NOT CIFAR-100" in found.notice
    assert "TUNING DIVISION (seed 2)" in found.notice
    for part, each in (("train", 6), ("test", 4)):
        images, before = getattr(found, part), getattr(whole, part)
        names = [found.classes[label] for label in images.labels]
        assert Counter(names) == dict.fromkeys(glyphs.DIVISION.base, each)
        by_picture = {
            picture.tobytes(): whole.classes[label] for picture, label in zip(before.images, before.labels, strict=True)
        }
        assert names == [by_picture[picture.tobytes()] for picture in images.images]
        assert images.labels.dtype == np.int64


def test_images_are_counted_as_they_will_be_found(tmp_path: Path) -> None:
    division, counts = count_images(choice=TUNING)
    assert division == tuning_division(CIFAR100, 2)
    assert counts == {"train": dict.fromkeys(division.classes, 500), "test": dict.fromkeys(division.classes, 100)}
    folder = make_folder(tmp_path / "mine")
    division, counts = count_images(folder, dataset="folder", choice=TUNING)
    assert division == tuning_division(MINE, 2)
    assert counts == {part: dict.fromkeys(MINE.base, 20) for part in ("train", "test")}
