"""Own pictures: whatever the format says, the same picture has the same pixels; what is no picture is named."""

import os
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image, ImageOps

from individual_node.image_folder import class_folders, pictures_of, read_tree
from protocol.errors import InputError
from protocol.learngene.architecture import InputContract
from tests.individual_node.one_picture import read_picture

COLOUR = InputContract(height=8, width=12, channels=3)
GREY = InputContract(height=8, width=12, channels=1)


def drawn(seed: int = 0, height: int = 8, width: int = 12) -> NDArray[np.uint8]:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def saved(path: Path, picture: Image.Image, **options: object) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    picture.save(path, **options)
    return path


def tree(folder: Path, **classes: int) -> Path:
    """A folder of each class with so many pictures, all of them different."""
    seed = 0
    for name, count in classes.items():
        (folder / name).mkdir(parents=True)
        for number in range(count):
            saved(folder / name / f"{number}.png", Image.fromarray(drawn(seed)))
            seed += 1
    return folder


@pytest.mark.parametrize("name", ["a.png", "a.bmp", "a.tif", "a.ppm", "a.PNG", "no suffix"])
def test_a_picture_of_the_right_size_stays_as_it_is(tmp_path: Path, name: str) -> None:
    file = saved(tmp_path / name, Image.fromarray(drawn()), format="PNG" if name == "no suffix" else None)
    np.testing.assert_array_equal(read_picture(file, COLOUR), drawn(), strict=True)


def test_the_shorter_side_is_resized_and_the_middle_cut_out(tmp_path: Path) -> None:
    # Four times as large, with a border left and right that has to go.
    middle = np.repeat(np.repeat(drawn(), 4, 0), 4, 1)
    border = np.zeros((32, 20, 3), np.uint8)
    file = saved(tmp_path / "wide.png", Image.fromarray(np.concatenate([border, middle, border], 1)))
    expected = np.asarray(Image.fromarray(middle).resize((12, 8), Image.Resampling.BICUBIC))
    # The cubic kernel reaches two pixels far, so the outermost ones also see what lies beyond.
    np.testing.assert_allclose(read_picture(file, COLOUR)[:, 2:-2].astype(int), expected[:, 2:-2], atol=1)
    high = saved(tmp_path / "high.png", Image.fromarray(np.concatenate([middle] * 3, 0)))
    np.testing.assert_allclose(read_picture(high, COLOUR)[2:-2].astype(int), expected[2:-2], atol=1)
    small = saved(tmp_path / "small.png", Image.new("RGB", (3, 2), (10, 20, 30)))
    np.testing.assert_array_equal(read_picture(small, COLOUR), np.broadcast_to((10, 20, 30), (8, 12, 3)))


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_camera_s_orientation_is_undone(tmp_path: Path, orientation: int) -> None:
    # What each value of the tag asks a viewer to do (Exif 2.3, section 4.6.4), undone to make the stored picture.
    undo = {
        1: lambda x: x,
        2: lambda x: x[:, ::-1],
        3: lambda x: x[::-1, ::-1],
        4: lambda x: x[::-1],
        5: lambda x: x.transpose(1, 0, 2),
        6: lambda x: x[:, ::-1].transpose(1, 0, 2),
        7: lambda x: x[::-1, ::-1].transpose(1, 0, 2),
        8: lambda x: x[::-1].transpose(1, 0, 2),
    }
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored = Image.fromarray(np.ascontiguousarray(undo[orientation](drawn())))
    file = saved(tmp_path / "turned.png", stored, exif=exif)
    np.testing.assert_array_equal(read_picture(file, COLOUR), drawn())


def test_grey_palette_and_colour_are_brought_to_the_learngene_s_channels(tmp_path: Path) -> None:
    grey = Image.fromarray(drawn()).convert("L")
    file = saved(tmp_path / "grey.png", grey)
    for channel in range(3):
        np.testing.assert_array_equal(read_picture(file, COLOUR)[:, :, channel], np.asarray(grey))
    np.testing.assert_array_equal(read_picture(file, GREY)[:, :, 0], np.asarray(grey))
    colour = saved(tmp_path / "colour.png", Image.fromarray(drawn()))
    np.testing.assert_array_equal(read_picture(colour, GREY)[:, :, 0], np.asarray(grey))
    palette = Image.fromarray(drawn()).quantize(16)
    file = saved(tmp_path / "palette.gif", palette)
    np.testing.assert_array_equal(read_picture(file, COLOUR), np.asarray(palette.convert("RGB")))
    black_and_white = grey.convert("1")
    file = saved(tmp_path / "fax.tif", black_and_white)
    np.testing.assert_array_equal(read_picture(file, GREY)[:, :, 0], 255 * np.asarray(black_and_white, np.uint8))


@pytest.mark.parametrize(("name", "order"), [("deep.png", "<u2"), ("deep.tif", "<u2"), ("deep.tif", ">u2")])
def test_sixteen_bits_keep_their_upper_eight(tmp_path: Path, name: str, order: str) -> None:
    grey = np.asarray(Image.fromarray(drawn()).convert("L"))
    picture = Image.fromarray((grey.astype(np.uint16) * 257).astype(order))
    np.testing.assert_array_equal(read_picture(saved(tmp_path / name, picture), GREY)[:, :, 0], grey)


def test_what_is_transparent_is_white(tmp_path: Path) -> None:
    alpha = np.zeros((8, 12), np.uint8)
    alpha[:, :6] = 255
    expected = np.where(alpha[:, :, None] > 0, drawn(), 255)
    rgba = Image.fromarray(np.dstack([drawn(), alpha]))
    np.testing.assert_array_equal(read_picture(saved(tmp_path / "cut-out.png", rgba), COLOUR), expected)
    palette = Image.new("P", (12, 8), 1)
    palette.putpalette([0, 0, 0, 200, 0, 0])
    palette.paste(0, (0, 0, 12, 4))
    found = read_picture(saved(tmp_path / "palette.png", palette, transparency=0), COLOUR)
    assert (found[:4] == 255).all()
    assert (found[4:] == (200, 0, 0)).all()
    grey = Image.merge("LA", (Image.new("L", (12, 8), 50), Image.fromarray(alpha)))
    found = read_picture(saved(tmp_path / "grey.png", grey), GREY)
    assert (found[:, :6] == 50).all()
    assert (found[:, 6:] == 255).all()


def test_a_jpeg_in_print_colours_and_a_moving_picture_are_read(tmp_path: Path) -> None:
    cmyk = Image.new("CMYK", (24, 16), (0, 255, 255, 0))
    found = read_picture(saved(tmp_path / "print.jpg", cmyk, quality=100), COLOUR)
    assert np.abs(found.astype(int) - (255, 0, 0)).max() <= 3
    frames = [Image.new("RGB", (12, 8), colour) for colour in ("lime", "red")]
    file = saved(tmp_path / "moving.gif", frames[0], save_all=True, append_images=frames[1:])
    assert (read_picture(file, COLOUR) == (0, 255, 0)).all()


def test_what_is_no_picture_is_named(tmp_path: Path) -> None:
    whole = saved(tmp_path / "whole.png", Image.fromarray(drawn(height=100, width=100))).read_bytes()
    bad = {"text.png": b"no picture", "empty.jpg": b"", "cut.png": whole[: len(whole) // 2]}
    for name, content in bad.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(InputError, match=name):
            read_picture(tmp_path / name, COLOUR)
    floating = saved(tmp_path / "floating.tif", Image.fromarray(np.ones((8, 12), np.float32)))
    with pytest.raises(InputError, match=r"floating\.tif holds floating-point"):
        read_picture(floating, COLOUR)
    wide = saved(tmp_path / "wide.tif", Image.fromarray(np.full((8, 12), 1 << 20, np.int32)))
    with pytest.raises(InputError, match=r"wide\.tif holds values beyond 16 bits"):
        read_picture(wide, COLOUR)
    with pytest.raises(InputError, match="4 channels"):
        read_picture(tmp_path / "whole.png", InputContract(height=8, width=8, channels=4))


def test_a_tree_is_read_class_by_class(tmp_path: Path) -> None:
    folder = tree(tmp_path / "pictures", **{"leaf beetle": 2, "ant": 3})
    (folder / ".DS_Store").write_bytes(b"x")
    (folder / "ant" / "Thumbs.db").write_bytes(b"x")
    # As a notebook leaves them; they hold pictures.
    for hidden in (folder / ".ipynb_checkpoints", folder / "ant" / ".ipynb_checkpoints"):
        saved(hidden / "0-checkpoint.png", Image.fromarray(drawn(99)))
    seen: list[tuple[int, int]] = []
    found = read_tree(folder, COLOUR, lambda done, total: seen.append((done, total)))
    assert found.classes == ("ant", "leaf beetle")
    assert found.counts == (3, 2)
    assert found.labels.tolist() == [0, 0, 0, 1, 1]
    assert seen == [(done, 5) for done in range(1, 6)]
    for file, pixels in zip(found.files, found.pixels, strict=True):
        np.testing.assert_array_equal(np.asarray(Image.open(file)), pixels)


def test_a_picture_counts_once_and_stands_in_one_class(tmp_path: Path) -> None:
    folder = tree(tmp_path / "pictures", ant=3, bee=2)
    copied = folder / "ant" / "copy of 1.tif"
    saved(copied, ImageOps.exif_transpose(Image.open(folder / "ant" / "1.png")))
    found = read_tree(folder, COLOUR)
    assert found.counts == (3, 2)
    assert len(found.files) == len(found.pixels) == len(found.labels) == 5
    assert len(found.copies) == 1
    copied.rename(folder / "bee" / "copy.tif")
    with pytest.raises(InputError, match=r"1\.png and .*copy\.tif are the same picture in two classes"):
        read_tree(folder, COLOUR)


def test_a_folder_that_is_no_class_tree_is_refused(tmp_path: Path) -> None:
    def refused(folder: Path, words: str) -> None:
        with pytest.raises(InputError, match=words):
            class_folders(folder)

    refused(tmp_path / "nowhere", "cannot read the folder")
    folder = tmp_path / "pictures"
    folder.mkdir()
    refused(folder, "no class folder")
    tree(folder, ant=2)
    refused(folder, "only the class 'ant'")
    (folder / "bee").mkdir()
    refused(folder, "bee holds no pictures")
    tree(folder / "bee", wings=1)
    refused(folder, "bee holds folders alone")
    saved(folder / "bee" / "0.png", Image.new("L", (1, 1)))
    refused(folder, "wings is a folder inside")
    loose = tree(tmp_path / "loose", ant=1, bee=1)
    (loose / "c.png").write_bytes(b"x")
    refused(loose, r"c\.png lies beside")
    other = tree(tmp_path / "named", **{"ant\n": 1, "bee": 1})
    refused(other, "no name for a class")


def test_a_folder_stands_for_the_pictures_in_it(tmp_path: Path) -> None:
    folder = tree(tmp_path, ant=2) / "ant"
    assert pictures_of([folder]) == [folder / "0.png", folder / "1.png"]
    (tmp_path / "bee").mkdir()
    with pytest.raises(InputError, match="holds no pictures"):
        pictures_of([tmp_path / "bee"])


def test_everything_that_is_wrong_in_a_tree_is_named_at_once(tmp_path: Path) -> None:
    """What is no folder of pictures before any is opened, then every bad picture, then every one that is in two
    classes."""
    folder = tree(tmp_path / "pictures", ant=2, bee=2)
    for name in ("one.png", "two.png"):
        (folder / name).write_bytes(b"x")
    (folder / "cat").mkdir()
    with pytest.raises(InputError) as caught:
        read_tree(folder, COLOUR)
    assert all(f"/{name} " in str(caught.value) for name in ("one.png", "two.png", "cat"))
    (folder / "cat").rmdir()
    # A pipe would be waited for without end, as one that a camera program or a killed copy leaves.
    os.mkfifo(folder / "ant" / "pipe.png")
    (folder / "one.png").rename(folder / "ant" / "one.png")
    (folder / "two.png").rename(folder / "bee" / "two.png")
    with pytest.raises(InputError) as caught:
        read_tree(folder, COLOUR)
    assert all(f"/{name} " in str(caught.value) for name in ("ant/one.png", "ant/pipe.png", "bee/two.png"))
    for name in ("ant/one.png", "ant/pipe.png", "bee/two.png"):
        (folder / name).unlink()
    for name in ("0.png", "1.png"):
        (folder / "bee" / f"as {name}").write_bytes((folder / "ant" / name).read_bytes())
    with pytest.raises(InputError) as caught:
        read_tree(folder, COLOUR)
    assert all(f"/bee/as {name} " in str(caught.value) for name in ("0.png", "1.png"))


def test_a_picture_that_is_given_twice_is_named_once(tmp_path: Path) -> None:
    folder = tree(tmp_path, ant=2) / "ant"
    one, other = folder / "1.png", folder / "0.png"
    (tmp_path / "link").symlink_to(folder)
    assert pictures_of([one, folder, folder, tmp_path / "link", folder / ".." / "ant" / "0.png"]) == [one, other]
    # Another name is another picture to whoever asks, whatever it leads to.
    (folder / "2.png").symlink_to(one)
    assert pictures_of([folder]) == [other, one, folder / "2.png"]
