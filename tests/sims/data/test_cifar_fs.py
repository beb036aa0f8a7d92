"""CIFAR-FS: the split of the literature, and a folder of links with a split beside them."""

import json
from dataclasses import asdict
from pathlib import Path

import sims.folder
from sims.cifar100.split import CIFAR100
from sims.data.division import read_split
from sims.data.images import load_source
from tests.sims.made_tree import DIVISION, make_tree

SPLIT = Path(sims.folder.__path__[0]) / "cifar-fs" / "split.json"


def test_the_split_has_64_16_and_20_different_classes_of_cifar100() -> None:
    found = read_split(SPLIT)
    assert [len(names) for names in (found.base, found.open_world, found.novel)] == [64, 16, 20]
    assert len(set(found.division.classes)) == 100
    assert set(found.division.classes) == set(CIFAR100.classes)
    assert found.size == 32


def test_it_is_the_division_of_the_paper_s_appendix() -> None:
    """In the same order too, so that both give the same world."""
    assert read_split(SPLIT).division == CIFAR100


def test_links_to_images_with_a_split_beside_them_are_a_folder_of_ones_own(tmp_path: Path) -> None:
    make_tree(tmp_path / "images")
    folder = tmp_path / "linked"
    folder.mkdir()
    for part in ("train", "test"):
        (folder / part).symlink_to(tmp_path / "images" / part)
    (folder / "split.json").write_text(json.dumps(asdict(DIVISION)), encoding="utf-8")
    found = load_source(folder, dataset="folder")
    assert (found.name, found.division, len(found.train.images)) == ("linked", DIVISION, 10)
