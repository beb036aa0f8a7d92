"""Decoded images of a tree: equal to what is decoded anew, used while the listing is the same, bounded in number."""

import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from sims.data import images
from sims.data.images import ImageSource, draw_stand_in, load_source
from sims.data.picture_cache import MOST, keep, kept, listing_digest
from tests.sims.made_tree import make_tree, pixels

SPLIT = '{"size": 32, "base": ["ant", "bee"], "open_world": ["cat"], "novel": ["dog", "elk"]}'


@pytest.fixture
def tree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(images, "_WORTH_KEEPING", 10)
    make_tree(tmp_path / "mine")
    (tmp_path / "mine" / "split.json").write_text(SPLIT)
    return tmp_path / "mine"


def load(tree: Path) -> ImageSource:
    return load_source(tree, dataset="folder", cache=tree.parent / "cache")


def some_picture(tree: Path) -> Path:
    return sorted((tree / "train" / "ant").iterdir())[0]


def repaint(file: Path) -> None:
    """Another picture of the same date, and as a bitmap of the same size."""
    before = file.stat()
    Image.fromarray(255 - np.asarray(Image.open(file))).save(file)
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))


def as_bitmaps(tree: Path) -> None:
    for file in [*tree.rglob("*.png")]:
        Image.open(file).save(file.with_suffix(".bmp"))
        file.unlink()


def kept_array(tree: Path) -> Path:
    (file,) = (tree.parent / "cache" / "decoded").iterdir()
    return file


def test_images_come_from_the_cache_while_the_listing_is_the_same(tree: Path) -> None:
    first = load(tree)
    other = 255 - np.load(kept_array(tree))  # shows where the pixels come from
    np.save(kept_array(tree), other)
    second = load(tree)
    np.testing.assert_array_equal(second.train.images, 255 - first.train.images)
    np.testing.assert_array_equal(second.test.images, 255 - first.test.images)
    np.testing.assert_array_equal(first.train.labels, second.train.labels)


def test_a_file_of_the_same_name_size_and_date_is_another_file(tree: Path) -> None:
    as_bitmaps(tree)
    first = load(tree)
    repaint(some_picture(tree))
    np.testing.assert_array_equal(load(tree).train.images[0], 255 - first.train.images[0])


def test_a_name_or_a_size_that_changed_is_noticed(tree: Path) -> None:
    first = load(tree)
    file = some_picture(tree)
    file.rename(file.with_name("zzzz.png"))
    np.testing.assert_array_equal(load(tree).train.images[1], first.train.images[0])
    status = some_picture(tree).stat()
    Image.fromarray(np.zeros((40, 40, 3), np.uint8)).save(some_picture(tree))
    os.utime(some_picture(tree), ns=(status.st_atime_ns, status.st_mtime_ns))
    assert not load(tree).train.images[0].any()


def test_a_tree_that_was_moved_is_the_same_tree(tree: Path) -> None:
    load(tree)
    (kept_file,) = (tree.parent / "cache" / "decoded").iterdir()
    kept_at = kept_file.stat().st_ino
    tree.rename(tree.parent / "moved")
    load(tree.parent / "moved")
    assert [file.stat().st_ino for file in (tree.parent / "cache" / "decoded").iterdir()] == [kept_at]


@pytest.mark.parametrize("damage", [b"", b"no array", None])
def test_what_does_not_fit_is_decoded_again(tree: Path, damage: bytes | None) -> None:
    first = load(tree)
    (file,) = (tree.parent / "cache" / "decoded").iterdir()
    if damage is None:
        np.save(file, np.zeros((3, 32, 32, 3), np.uint8))
    else:
        file.write_bytes(damage)
    np.testing.assert_array_equal(load(tree).train.images, first.train.images)


def test_a_cache_that_cannot_be_written_or_is_open_to_others_is_not_used(tree: Path) -> None:
    cache = tree.parent / "cache"
    cache.write_text("a file is in its place")
    first = load(tree)
    cache.unlink()
    load(tree)
    np.save(kept_array(tree), 255 - np.load(kept_array(tree)))
    (cache / "decoded").chmod(0o777)
    np.testing.assert_array_equal(load(tree).train.images, first.train.images)


def test_a_small_tree_is_not_kept(tmp_path: Path) -> None:
    make_tree(tmp_path / "mine")
    (tmp_path / "mine" / "split.json").write_text(SPLIT)
    load(tmp_path / "mine")
    assert not (tmp_path / "cache").exists()


def test_the_tree_that_was_not_used_for_longest_makes_room(tmp_path: Path) -> None:
    made = np.stack([pixels(0)])
    for number in range(MOST):
        keep(tmp_path / "cache", str(number), made)
        os.utime(tmp_path / "cache" / f"{number}.npy", (number, number))
    assert kept(tmp_path / "cache", "0", 1, 32) is not None  # used now
    keep(tmp_path / "cache", "new", made)
    names = {file.stem for file in (tmp_path / "cache").iterdir()}
    assert names == {"0", "new", *(str(number) for number in range(2, MOST))}


def test_names_that_are_no_text_have_a_digest(tmp_path: Path) -> None:
    file = os.fsdecode(os.fsencode(tmp_path) + b"/\xff\xfe.png")
    Path(file).write_bytes(b"")
    assert listing_digest(tmp_path, [file], 32) != listing_digest(tmp_path, [file], 33)


def test_what_a_killed_run_left_half_written_goes_after_a_day(tmp_path: Path) -> None:
    keep(tmp_path / "cache", "one", np.stack([pixels(0)]))
    old, new = tmp_path / "cache" / "old.part", tmp_path / "cache" / "new.part"
    for file in (old, new):
        file.write_bytes(b"")
    os.utime(old, (1, 1))
    keep(tmp_path / "cache", "two", np.stack([pixels(0)]))
    assert (old.exists(), new.exists()) == (False, True)


def test_the_stand_in_is_drawn_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(images, "_WORTH_KEEPING", 10)

    def drawn(cache: Path | None, seed: int = 0) -> ImageSource:
        return draw_stand_in("test", seed=seed, train_per_class=2, test_per_class=1, cache=cache)

    plain, first = drawn(None), drawn(tmp_path)
    (file,) = (tmp_path / "decoded").iterdir()
    np.save(file, 255 - np.load(file))  # shows where the pixels come from
    second = drawn(tmp_path)
    for part in ("train", "test"):
        without, before, after = (getattr(source, part).images for source in (plain, first, second))
        np.testing.assert_array_equal(before, without)
        np.testing.assert_array_equal(after, 255 - without)
    assert not np.array_equal(drawn(tmp_path, seed=1).train.images, second.train.images)
    assert len([*(tmp_path / "decoded").iterdir()]) == 2
