"""Folder trees: which images are for training and which for testing, and how each is read."""

import json
import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from protocol.errors import InputError
from protocol.pictures.formats import FORMATS, SUFFIXES
from protocol.pictures.reader import PictureReader
from sims.data.folder_tree import ONE_IN, FolderTree, is_tree, list_tree, read_images
from sims.data.images import load_source
from tests.sims.made_tree import CLASSES, DIVISION, make_tree, pixels


def names(tree: FolderTree, part: str) -> dict[str, list[str]]:
    """Paths below the root by class."""
    found = tree.files["train" if part == "train" else "test"]
    return {label: [str(Path(file).relative_to(tree.root)) for file in files] for label, files in found.items()}


def read(tree: FolderTree, part: str, size: int = 32) -> np.ndarray:
    files = tree.files["train" if part == "train" else "test"].values()
    with PictureReader(1) as reader:
        return read_images([file for of_class in files for file in of_class], size, reader)


def read_image(file: Path, size: int) -> np.ndarray:
    with PictureReader(1) as reader:
        return read_images([str(file)], size, reader)[0]


def test_a_tree_is_read_in_the_order_of_names(tmp_path: Path) -> None:
    made = make_tree(tmp_path)
    (tmp_path / "train" / "fox").mkdir()  # a class that nobody asked for
    (tmp_path / "train" / "ant" / "notes.txt").write_text("not an image")
    (tmp_path / "train" / "ant" / "._0.png").write_bytes(b"left by another system")
    tree = list_tree(tmp_path, DIVISION)
    assert tree.counts == {part: dict.fromkeys(CLASSES, 2) for part in ("train", "test")}
    for part in ("train", "test"):
        assert list(tree.files["train"]) == list(CLASSES)
        np.testing.assert_array_equal(read(tree, part), np.stack(made[part]))


def test_images_of_every_format_that_is_read_are_found_and_what_is_passed_over_is_named_and_counted(
    tmp_path: Path,
) -> None:
    """JPEGs as browsers and scanners name them, greys, a picture without suffix; HEIC, AVIF and JPEG 2000 are not
    read."""
    make_tree(tmp_path)
    ant = tmp_path / "train" / "ant"
    for suffix in ("jfif", "jpe", "JPEG", "mpo"):
        Image.fromarray(pixels(1)).save(ant / f"a.{suffix}", "JPEG")
    Image.fromarray(pixels(2)[..., 0]).save(ant / "a.pgm")
    Image.fromarray(pixels(3)).save(ant / "no suffix", "PNG")
    for name in ("a.heic", "b.heic", "a.avif", "a.jp2", "labels.csv", "Thumbs.db", ".DS_Store"):
        (ant / name).write_bytes(b"x")
    (ant / "thumbs").mkdir()
    os.mkfifo(ant / "pipe")  # nothing waits for its writer
    tree = list_tree(tmp_path, DIVISION)
    assert tree.counts["train"] == {**dict.fromkeys(CLASSES, 2), "ant": 8}
    assert len(read(tree, "train")) == 2 * len(CLASSES) + 6
    passed = {"a.heic", "b.heic", "a.avif", "a.jp2", "labels.csv", "thumbs", "pipe"}
    assert {Path(path).name for path in tree.others} == passed
    assert "7 entries" in tree.others_line
    assert "2 .heic" in tree.others_line
    assert tree.only(["ant"]).others_line == tree.others_line
    for name in ("0000.png", "0001.png", "a.jfif", "a.jpe", "a.JPEG", "a.mpo", "a.pgm", "no suffix"):
        (ant / name).unlink()
    with pytest.raises(InputError, match=r"7 other entries, such as .*a\.avif"):
        list_tree(tmp_path, DIVISION)


def test_the_suffixes_are_those_of_the_formats_that_are_read() -> None:
    """As Pillow registers them, and two more of JPEG; a format that Pillow learns is not ours."""
    Image.init()
    known = {suffix for suffix, kind in Image.registered_extensions().items() if kind in (*FORMATS, "MPO")}
    assert known - SUFFIXES <= {".pfm"}  # floating point
    assert SUFFIXES - known <= {".pjpeg", ".pjp", ".webp"}


def test_of_bits_that_a_split_names_the_images_are_read(tmp_path: Path) -> None:
    make_tree(tmp_path)
    values = np.arange(32 * 32, dtype=np.uint16).reshape(32, 32) * 4
    Image.fromarray(values).save(tmp_path / "train" / "ant" / "deep.png")
    split = {"base": DIVISION.base, "open_world": DIVISION.open_world, "novel": DIVISION.novel}
    (tmp_path / "split.json").write_text(json.dumps(split))
    with pytest.raises(InputError, match=r"deep\.png .*split\.json"):
        load_source(tmp_path, dataset="folder", cache=tmp_path / "cache")
    (tmp_path / "split.json").write_text(json.dumps(split | {"bits": 12}))
    found = load_source(tmp_path, dataset="folder", cache=tmp_path / "cache")
    np.testing.assert_array_equal(found.train.images[2, :, :, 0], (values * (255 / 4095)).round())


def test_validation_images_are_the_test_images_where_test_holds_none_of_the_classes(tmp_path: Path) -> None:
    make_tree(tmp_path, parts=("train", "val"))
    (tmp_path / "test").mkdir()  # as ImageNet's: images without classes
    (tmp_path / "test" / "0.png").touch()
    assert names(list_tree(tmp_path, DIVISION), "test")["bee"] == ["val/bee/0002.png", "val/bee/0003.png"]


@pytest.mark.parametrize("layout", ["side by side", "by role"])
def test_without_test_images_one_in_six_is_set_aside_always_the_same(tmp_path: Path, layout: str) -> None:
    make_tree(tmp_path, parts=("train",), each=13)
    homes = dict.fromkeys(CLASSES, "train/")
    for label in CLASSES:
        if layout == "side by side" or (layout == "by role" and label in DIVISION.novel + DIVISION.open_world):
            homes[label] = "" if layout == "side by side" else "test/" if label in DIVISION.novel else "val/"
            (tmp_path / homes[label]).mkdir(exist_ok=True)
            (tmp_path / "train" / label).rename(tmp_path / homes[label] / label)
    if layout == "side by side":
        (tmp_path / "train").rmdir()
    assert is_tree(tmp_path, DIVISION)
    tree = list_tree(tmp_path, DIVISION)
    train, test = names(tree, "train"), names(tree, "test")
    for label in CLASSES:
        assert len(test[label]) == 13 // ONE_IN
        assert not set(train[label]) & set(test[label])
        assert all(file.startswith(f"{homes[label]}{label}/") for file in train[label] + test[label])
        assert len(train[label] + test[label]) == 13
        assert train[label] == sorted(train[label])
    assert list_tree(tmp_path, DIVISION) == tree
    assert "one image in 6" in tree.layout


def test_of_a_tree_that_was_half_copied_nothing_is_guessed(tmp_path: Path) -> None:
    make_tree(tmp_path, parts=("train",))
    assert not is_tree(tmp_path, DIVISION)
    with pytest.raises(InputError, match="lacks 5 of 5 class folders"):
        list_tree(tmp_path, DIVISION)


def test_a_class_with_one_image_has_nothing_to_train_on(tmp_path: Path) -> None:
    make_tree(tmp_path, parts=(".",), each=1)
    assert list_tree(tmp_path, DIVISION).counts == {
        "train": dict.fromkeys(CLASSES, 0),
        "test": dict.fromkeys(CLASSES, 1),
    }


def test_a_class_may_be_called_train(tmp_path: Path) -> None:
    make_tree(tmp_path)
    division = type(DIVISION)(base=("ant", "train"), open_world=("bee",), novel=("cat",))
    for part in ("train", "test"):
        (tmp_path / part / "dog").rename(tmp_path / part / "train")
    assert names(list_tree(tmp_path, division), "train")["train"] == ["train/train/0006.png", "train/train/0007.png"]


def test_a_missing_class_and_an_empty_one_are_named(tmp_path: Path) -> None:
    make_tree(tmp_path)
    (tmp_path / "test" / "cat").rename(tmp_path / "elsewhere")
    with pytest.raises(InputError, match=r"test lacks 1 of 5 class folders: cat"):
        list_tree(tmp_path, DIVISION)
    for other in ("Cat", "cat "):  # as a spreadsheet or another system names them
        (tmp_path / "test" / other).mkdir()
        with pytest.raises(InputError, match=f"there is '{other}'"):
            list_tree(tmp_path, DIVISION)
        (tmp_path / "test" / other).rmdir()
    (tmp_path / "test" / "cat").mkdir()
    (tmp_path / "test" / "bee").rename(tmp_path / "another")
    (tmp_path / "test" / "bee").mkdir()
    with pytest.raises(InputError, match=r"test/bee holds no images.*test/cat holds no images"):
        list_tree(tmp_path, DIVISION)
    with pytest.raises(InputError, match=r"elsewhere lacks 5 of 5 class folders: ant, bee"):
        list_tree(tmp_path / "elsewhere", DIVISION)


def test_the_shorter_side_is_resized_and_the_middle_cut_out(tmp_path: Path) -> None:
    # Three squares side by side: only the middle one is left, whatever the size.
    wide = np.concatenate([np.full((60, 60, 3), value, np.uint8) for value in (10, 120, 240)], axis=1)
    for name, picture in (("wide", wide), ("tall", wide.transpose(1, 0, 2))):
        file = tmp_path / f"{name}.png"
        Image.fromarray(picture).save(file)
        for size in (32, 84):
            found = read_image(file, size)
            assert found.shape == (size, size, 3)
            inner = found[4:-4, 4:-4]  # the edges are smoothed
            assert (inner == 120).all()


def test_every_kind_of_image_becomes_rgb(tmp_path: Path) -> None:
    grey = pixels(7)[..., 0]
    Image.fromarray(grey).save(tmp_path / "grey.png")
    np.testing.assert_array_equal(read_image(tmp_path / "grey.png", 32), np.repeat(grey[..., None], 3, axis=2))
    few = Image.fromarray(pixels(8)).quantize(16)
    few.save(tmp_path / "palette.gif")
    np.testing.assert_array_equal(read_image(tmp_path / "palette.gif", 32), np.asarray(few.convert("RGB")))


def test_an_image_that_its_camera_turned_stands_upright_at_any_size(tmp_path: Path) -> None:
    picture = Image.fromarray(pixels(9))
    exif = picture.getexif()
    exif[0x0112] = 3  # upside down
    picture.save(tmp_path / "turned.png", exif=exif)
    np.testing.assert_array_equal(read_image(tmp_path / "turned.png", 32), np.asarray(picture)[::-1, ::-1])


@pytest.mark.parametrize("keep", [0, 10, 60, 400])
@pytest.mark.parametrize("size", [32, 84])
def test_a_damaged_image_is_named(tmp_path: Path, keep: int, size: int) -> None:
    make_tree(tmp_path)
    damaged = tmp_path / "train" / "cat" / "0004.png"
    damaged.write_bytes(damaged.read_bytes()[:keep])
    with pytest.raises(InputError, match=r"cat/0004\.png cannot be read"):
        read(list_tree(tmp_path, DIVISION), "train", size)
