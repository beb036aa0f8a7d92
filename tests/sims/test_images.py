"""Image sources: folder trees, the published archive through torchvision, and when the stand-in may step in."""

import hashlib
import os
import pickle
import tarfile
from collections.abc import Iterator
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import numpy as np
import pytest
from PIL import Image

from protocol.errors import InputError
from sims import glyphs, images
from sims.cifar100.split import CIFAR100
from sims.division import Division
from sims.images import count_images, division_of, load_source, read_folder_tree, read_published

CLASSES = ("ant", "bee", "cat")


def _pixels(seed: int, size: int = 32) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (size, size, 3), dtype=np.uint8)


def _tree(root: Path) -> dict[str, list[np.ndarray]]:
    """Two images a class and part, in folders made in another order than their names; returns the pixels by part."""
    made: dict[str, list[np.ndarray]] = {}
    for offset, part in ((0, "train"), (100, "test")):
        made[part] = [_pixels(offset + index) for index in range(6)]
        for index in reversed(range(6)):
            folder = root / part / CLASSES[index // 2]
            folder.mkdir(parents=True, exist_ok=True)
            Image.fromarray(made[part][index]).save(folder / f"{index}.png")
    return made


def test_a_folder_tree_is_read_in_the_order_of_names(tmp_path: Path) -> None:
    made = _tree(tmp_path)
    (tmp_path / "train" / "dog").mkdir()  # a class that nobody asked for
    (tmp_path / "train" / "ant" / "notes.txt").write_text("not an image")
    (tmp_path / "train" / "ant" / "._0.png").write_bytes(b"left by another system")
    source = read_folder_tree(tmp_path, CLASSES, name="animals")
    assert (source.name, source.kind, source.classes, source.notice) == ("animals", "folder", CLASSES, "")
    np.testing.assert_array_equal(source.train.images, np.stack(made["train"]))
    np.testing.assert_array_equal(source.test.images, np.stack(made["test"]))
    assert source.train.labels.tolist() == source.test.labels.tolist() == [0, 0, 1, 1, 2, 2]


def test_grey_and_palette_images_become_rgb(tmp_path: Path) -> None:
    _tree(tmp_path)
    grey = _pixels(7)[..., 0]
    Image.fromarray(grey).save(tmp_path / "train" / "ant" / "0.png")
    source = read_folder_tree(tmp_path, CLASSES, name="animals")
    np.testing.assert_array_equal(source.train.images[0], np.repeat(grey[..., None], 3, axis=2))


def test_a_missing_class_is_named(tmp_path: Path) -> None:
    _tree(tmp_path)
    (tmp_path / "test" / "cat").rename(tmp_path / "elsewhere")
    with pytest.raises(InputError, match=r"test lacks 1 of 3 class folders: cat"):
        read_folder_tree(tmp_path, CLASSES, name="animals")


def test_an_empty_class_is_named(tmp_path: Path) -> None:
    _tree(tmp_path)
    for file in (tmp_path / "train" / "bee").iterdir():
        file.unlink()
    with pytest.raises(InputError, match=r"train/bee holds no images"):
        read_folder_tree(tmp_path, CLASSES, name="animals")


def test_an_image_of_another_size_is_named(tmp_path: Path) -> None:
    _tree(tmp_path)
    Image.fromarray(_pixels(0)[:16]).save(tmp_path / "test" / "ant" / "1.png")
    with pytest.raises(InputError, match=r"ant/1\.png is 32x16 pixels; this dataset needs 32x32"):
        read_folder_tree(tmp_path, CLASSES, name="animals")


@pytest.mark.parametrize("keep", [0, 10, 60, 400])
def test_a_damaged_image_is_named(tmp_path: Path, keep: int) -> None:
    _tree(tmp_path)
    damaged = tmp_path / "train" / "cat" / "4.png"
    damaged.write_bytes(damaged.read_bytes()[:keep])
    with pytest.raises(InputError, match=r"cannot read the image .*cat/4\.png"):
        read_folder_tree(tmp_path, CLASSES, name="animals")


def test_given_data_is_never_replaced_by_the_stand_in(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such data folder"):
        load_source(tmp_path / "absent")
    with pytest.raises(InputError, match="holds neither train/ and test/"):
        load_source(tmp_path)
    _tree(tmp_path)  # a tree, but not of CIFAR-100's classes
    with pytest.raises(InputError, match=r"lacks 99 of 100 class folders: apple"):
        load_source(tmp_path)
    with pytest.raises(InputError, match="choose one"):
        load_source(tmp_path, stand_in=True)


def test_images_are_counted_by_their_names_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(images, "CIFAR100", Division(base=("ant",), open_world=("bee",), novel=("cat",)))
    _tree(tmp_path / "cifar100")
    (tmp_path / "cifar100" / "train" / "cat" / "more.png").write_bytes(b"opened by nobody")
    division, counts = count_images(tmp_path)
    assert division.classes == CLASSES
    assert counts == {"train": {"ant": 2, "bee": 2, "cat": 3}, "test": {"ant": 2, "bee": 2, "cat": 2}}
    (tmp_path / "archive" / "cifar-100-python").mkdir(parents=True)
    for published in (count_images(), count_images(tmp_path / "archive")):
        assert published[1] == {"train": dict.fromkeys(CLASSES, 500), "test": dict.fromkeys(CLASSES, 100)}
    division, counts = count_images(stand_in=True)
    assert division is glyphs.DIVISION
    assert set(counts["test"].values()) == {glyphs.TEST_PER_CLASS}
    for wrong in ("absent", "archive/cifar-100-python"):
        with pytest.raises(InputError, match=wrong):
            count_images(tmp_path / wrong)


@pytest.fixture
def few_glyphs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(glyphs, "TRAIN_PER_CLASS", 3)
    monkeypatch.setattr(glyphs, "TEST_PER_CLASS", 2)


@pytest.mark.usefixtures("few_glyphs")
def test_without_data_and_network_the_stand_in_says_what_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(images, "_URL", "http://127.0.0.1:9/nobody-listens")
    for variable in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(variable, raising=False)
    said: list[str] = []
    source = load_source(cache=tmp_path / "cache", say=said.append)
    assert (source.name, source.kind) == ("glyphs", "stand-in")
    assert "NOT CIFAR-100" in source.notice
    assert "could not be downloaded" in source.notice
    assert len(said) == 1
    assert not (tmp_path / "cache").exists()
    assert division_of(source) == glyphs.DIVISION
    assert source.train.images.shape == (300, 32, 32, 3)
    expected, _ = glyphs.draw(0, [41], train=3, test=1)
    np.testing.assert_array_equal(
        source.train.images[source.train.labels == source.classes.index("glyph_041")], expected
    )


# The published archive, made small: the layout that torchvision reads, with checksums of its own.


def _publish(root: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Write ``root/cifar-100-python`` and its archive, and tell torchvision their checksums; returns the archive."""
    from torchvision import datasets

    folder = root / "cifar-100-python"
    folder.mkdir(parents=True)
    names = sorted(CIFAR100.classes)
    contents = {
        "train": {"data": _planes(1, 200), "fine_labels": [index % 100 for index in range(200)]},
        "test": {"data": _planes(2, 100), "fine_labels": list(range(100))},
        "meta": {"fine_label_names": names},
    }
    checksums = {}
    for name, content in contents.items():
        data = pickle.dumps(content)
        (folder / name).write_bytes(data)
        checksums[name] = hashlib.md5(data).hexdigest()
    archive = root / "cifar-100-python.tar.gz"
    with tarfile.open(archive, "w:gz") as tar:
        tar.add(folder, arcname=folder.name)
    library = datasets.CIFAR100
    monkeypatch.setattr(library, "train_list", [["train", checksums["train"]]])
    monkeypatch.setattr(library, "test_list", [["test", checksums["test"]]])
    monkeypatch.setattr(library, "meta", {**library.meta, "md5": checksums["meta"]})
    monkeypatch.setattr(library, "tgz_md5", hashlib.md5(archive.read_bytes()).hexdigest())
    return archive


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A web server on loopback that has the made archive, in the place of the published address; yields the archive."""
    from torchvision import datasets

    archive = _publish(tmp_path / "server", monkeypatch)
    for variable in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(variable, raising=False)

    class Handler(SimpleHTTPRequestHandler):
        def __init__(self, *arguments: object) -> None:
            super().__init__(*arguments, directory=str(archive.parent))

        def log_message(self, format: str, *arguments: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as listening:
        url = f"http://127.0.0.1:{listening.server_port}/{archive.name}"
        monkeypatch.setattr(datasets.CIFAR100, "url", url)
        monkeypatch.setattr(images, "_URL", url)
        thread = Thread(target=listening.serve_forever, daemon=True)
        thread.start()
        yield archive
        listening.shutdown()
        thread.join()


def _planes(seed: int, count: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (count, 3 * 32 * 32), dtype=np.uint8)


def _check_published(source: images.ImageSource) -> None:
    assert (source.name, source.kind, source.notice) == ("cifar100", "download", "")
    assert source.classes == tuple(sorted(CIFAR100.classes))
    expected = _planes(1, 200).reshape(200, 3, 32, 32).transpose(0, 2, 3, 1)  # stored plane by plane
    np.testing.assert_array_equal(source.train.images, expected)
    assert source.train.images.flags.c_contiguous
    assert source.train.labels.tolist() == [index % 100 for index in range(200)]
    assert len(source.test.images) == 100
    assert division_of(source) == CIFAR100


def test_the_published_folder_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _publish(tmp_path, monkeypatch)
    _check_published(load_source(tmp_path))


def test_the_published_archive_is_read_and_nothing_is_left_beside_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    archive = _publish(tmp_path / "made", monkeypatch)
    (tmp_path / "given").mkdir()
    archive.rename(tmp_path / "given" / archive.name)
    _check_published(load_source(tmp_path / "given"))
    assert [path.name for path in (tmp_path / "given").iterdir()] == [archive.name]


def test_a_changed_byte_is_found_before_anything_is_unpickled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    archive = _publish(tmp_path, monkeypatch)
    train = tmp_path / "cifar-100-python" / "train"
    changed = bytearray(train.read_bytes())
    changed[1000] ^= 1
    train.write_bytes(changed)
    monkeypatch.setattr(pickle, "load", lambda *_, **__: pytest.fail("unpickled a file that was not checked"))
    with pytest.raises(InputError, match="not the published CIFAR-100"):
        read_published(tmp_path)
    archive.write_bytes(archive.read_bytes()[:-1])
    (tmp_path / "given").mkdir()
    archive.rename(tmp_path / "given" / archive.name)
    with pytest.raises(InputError, match="not the published CIFAR-100 archive"):
        load_source(tmp_path / "given")


def test_a_download_is_kept_and_not_fetched_again(server: Path, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    _check_published(load_source(cache=cache))
    assert [path.name for path in cache.iterdir()] == ["cifar-100-python"]
    server.unlink()
    _check_published(load_source(cache=cache))


def test_a_download_with_a_wrong_checksum_is_refused_and_removed(server: Path, tmp_path: Path) -> None:
    server.write_bytes(server.read_bytes()[:-1])
    cache = tmp_path / "cache"
    with pytest.raises(InputError, match="not the published archive"):
        load_source(cache=cache)
    assert list(cache.iterdir()) == []


@pytest.mark.usefixtures("few_glyphs")
def test_an_address_without_the_archive_counts_as_no_network(server: Path, tmp_path: Path) -> None:
    server.unlink()
    source = load_source(cache=tmp_path / "cache")
    assert source.kind == "stand-in"
    assert "not found" in source.notice.lower()


@pytest.mark.skipif(not os.environ.get("LEARNGENE_DATA"), reason="LEARNGENE_DATA names no folder of real images")
def test_real_images_have_the_published_channel_means() -> None:
    source = load_source(Path(os.environ["LEARNGENE_DATA"]))
    assert set(source.classes) == set(CIFAR100.classes)
    # Of the published training set; a folder tree may hold a part of it.
    means = source.train.images.mean(axis=(0, 1, 2)) / 255
    np.testing.assert_allclose(means, [0.50708, 0.48655, 0.44092], atol=2e-3)
