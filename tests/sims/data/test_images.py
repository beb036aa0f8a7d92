"""Image sources: what a dataset makes of a folder, the published archive, and when the stand-in may step in."""

import hashlib
import json
import os
import re
import tarfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import numpy as np
import pytest

from protocol.errors import InputError
from sims.cifar100.split import CIFAR100
from sims.data import cifar100_archive, glyphs, images
from sims.data.datasets import DATASETS
from sims.data.division_choice import DivisionChoice
from sims.data.images import count_images, draw_stand_in, load_source, read_published
from sims.imagenet100.split import IMAGENET100
from sims.results.models import Dataset
from sims.results.paper_figures import PAPER_FIGURES
from tests.sims.data.python2_pickle import pickled
from tests.sims.made_tree import CLASSES, DIVISION, make_tree


def test_given_data_is_never_replaced_by_the_stand_in(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such data folder"):
        load_source(tmp_path / "absent")
    with pytest.raises(InputError, match="holds neither train/ and test/"):
        load_source(tmp_path)
    make_tree(tmp_path)  # a tree, but not of CIFAR-100's classes
    with pytest.raises(InputError, match=r"train lacks 99 of 100 class folders: apple"):
        load_source(tmp_path)
    with pytest.raises(InputError, match="choose one"):
        load_source(tmp_path, stand_in=True)


def test_images_are_counted_by_their_names_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(images, "CIFAR100", DIVISION)
    monkeypatch.setitem(DATASETS, "cifar100", replace(DATASETS["cifar100"], division=DIVISION))
    make_tree(tmp_path / "cifar100")
    (tmp_path / "cifar100" / "train" / "cat" / "more.png").write_bytes(b"opened by nobody")
    division, counts = count_images(tmp_path)
    assert division.classes == CLASSES
    assert counts == {"train": {**dict.fromkeys(CLASSES, 2), "cat": 3}, "test": dict.fromkeys(CLASSES, 2)}
    (tmp_path / "archive" / "cifar-100-python").mkdir(parents=True)
    for published in (count_images(), count_images(tmp_path / "archive")):
        assert published[1] == {"train": dict.fromkeys(CLASSES, 500), "test": dict.fromkeys(CLASSES, 100)}
    division, counts = count_images(stand_in=True)
    assert division is glyphs.DIVISION
    assert set(counts["test"].values()) == {glyphs.TEST_PER_CLASS}
    for wrong in ("absent", "archive/cifar-100-python"):
        with pytest.raises(InputError, match=wrong):
            count_images(tmp_path / wrong)


def test_imagenet100_is_read_at_84_pixels_by_its_wordnet_ids(tmp_path: Path) -> None:
    made = make_tree(tmp_path / "imagenet100", IMAGENET100, parts=("train", "val"), each=1, size=(9, 12))
    (tmp_path / "imagenet100" / "train" / "n00000001").mkdir()  # a whole ImageNet has further classes
    for data in (tmp_path, tmp_path / "imagenet100"):
        source = load_source(data, dataset="imagenet100")
        assert (source.name, source.kind, source.division) == ("imagenet100", "folder", IMAGENET100)
        assert source.classes == IMAGENET100.classes
        assert source.train.images.shape == source.test.images.shape == (100, 84, 84, 3)
        # The middle of each picture: its left and right edges are gone.
        upright = np.stack([picture.mean() for picture in made["val"]])
        assert np.corrcoef(upright, source.test.images.mean((1, 2, 3)))[0, 1] > 0.9
    assert count_images(tmp_path, dataset="imagenet100")[1]["test"] == dict.fromkeys(IMAGENET100.classes, 1)


def test_imagenet100_has_the_classes_of_the_appendix() -> None:
    assert [len(names) for names in (IMAGENET100.base, IMAGENET100.open_world, IMAGENET100.novel)] == [64, 16, 20]
    assert all(re.fullmatch(r"n\d{8}", name) for name in IMAGENET100.classes)
    # One of each role, from the list.
    assert "n13054560" in IMAGENET100.base
    assert "n03980874" in IMAGENET100.open_world
    assert "n02099601" in IMAGENET100.novel


def test_imagenet100_is_drawn_only_where_that_is_asked_for(few_glyphs: None) -> None:
    for look in (count_images, load_source):
        with pytest.raises(InputError, match=r"ImageNet100 cannot be downloaded: give --data FOLDER .*WordNet id"):
            look(dataset="imagenet100")
    source = load_source(dataset="imagenet100", stand_in=True)
    assert (source.name, source.kind, source.train.images.shape) == ("glyphs", "stand-in", (300, 84, 84, 3))
    assert "NOT CIFAR-100 or ImageNet100" in source.notice
    small = draw_stand_in("to compare", train_per_class=3, test_per_class=2)
    # Enlarged, not drawn anew: blocks of the large picture average to the small one's.
    halves = [picture.reshape(-1, 2, picture.shape[1] // 2, 2, picture.shape[1] // 2, 3).mean((2, 4))
              for picture in (source.train.images, small.train.images)]  # fmt: skip
    np.testing.assert_allclose(halves[0], halves[1], atol=3)


def split(folder: Path, **changes: object) -> Path:
    """Write a ``split.json`` of the made classes."""
    folder.mkdir(exist_ok=True)
    roles = {"base": ["ant", "bee"], "open_world": ["cat"], "novel": ["dog", "elk"]}
    (folder / "split.json").write_text(json.dumps({**roles, **changes}), encoding="utf-8")
    return folder


def test_a_folder_of_ones_own_is_divided_by_its_split(tmp_path: Path) -> None:
    make_tree(split(tmp_path / "mine", size=40, names={"ant": "an ant"}), size=(50, 40))
    source = load_source(tmp_path / "mine", dataset="folder")
    assert (source.name, source.kind, source.division) == ("mine", "folder", DIVISION)
    assert source.train.images.shape == (10, 40, 40, 3)
    split(tmp_path / "mine")
    assert load_source(tmp_path / "mine", dataset="folder").train.images.shape == (10, 32, 32, 3)
    division, counts = count_images(tmp_path / "mine", dataset="folder")
    assert division == DIVISION
    assert counts == {part: dict.fromkeys(CLASSES, 2) for part in ("train", "test")}


@pytest.mark.parametrize("name", ["cifar100", "My Pictures (2026)", "Fotos für mich", "写真", "_x", "x" * 200])
def test_any_folder_s_name_becomes_one_that_results_hold(tmp_path: Path, name: str) -> None:
    make_tree(split(tmp_path / name))
    found = load_source(tmp_path / name, dataset="folder")
    division = DivisionChoice(name="tuning", seed=2**31 - 1)
    for text in (found.name, division.dataset_name(found.name)):
        Dataset(name=text, source="folder", notice=None)
        assert text not in PAPER_FIGURES


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"novel": ["dog", "ant"]}, "class 'ant' stands twice"),
        ({"base": ["ant", "ant"]}, "class 'ant' stands twice"),
        ({"novel": ["dog", "emu"]}, r"lacks 1 of 5 class folders: emu"),
        ({"novell": ["dog"]}, "novell"),
        ({"base": ["ant"]}, "base"),
        ({"open_world": []}, "open_world"),
        ({"open_world": "cat"}, "open_world"),
        ({"base": ["ant", "../bee"]}, r"base\.1"),
        ({"base": ["ant", ".."]}, r"base\.1"),
        ({"base": ["ant", 3]}, r"base\.1"),
        ({"size": 31}, "size"),
        ({"size": "84"}, "size"),
    ],
)
def test_a_wrong_split_is_one_line_that_says_where(tmp_path: Path, changes: dict[str, object], said: str) -> None:
    make_tree(split(tmp_path / "mine", **changes))
    for look in (count_images, load_source):
        with pytest.raises(InputError, match=said) as caught:
            look(tmp_path / "mine", dataset="folder")
        assert "\n" not in str(caught.value)
        assert str(tmp_path) in str(caught.value)


def test_a_folder_of_ones_own_needs_a_readable_split(tmp_path: Path) -> None:
    make_tree(tmp_path)
    with pytest.raises(InputError, match=r"holds no split\.json"):
        load_source(tmp_path, dataset="folder")
    (tmp_path / "split.json").write_text("{", encoding="utf-8")
    with pytest.raises(InputError, match=r"split\.json: invalid JSON"):
        load_source(tmp_path, dataset="folder")
    for stand_in, said in ((True, "no stand-in"), (False, "give --data")):
        with pytest.raises(InputError, match=said):
            load_source(dataset="folder", stand_in=stand_in)


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
    assert source.division == glyphs.DIVISION
    assert source.train.images.shape == (300, 32, 32, 3)
    expected, _ = glyphs.draw(0, [41], train=3, test=1)
    np.testing.assert_array_equal(
        source.train.images[source.train.labels == source.classes.index("glyph_041")], expected
    )


# The published archive, made small: written as Python 2 wrote it, with checksums of its own.


def publish(root: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Write ``root/cifar-100-python`` and its archive, and make their checksums the published ones; returns the
    archive."""
    folder = root / "cifar-100-python"
    folder.mkdir(parents=True)
    names = sorted(CIFAR100.classes)
    contents: dict[str, dict[bytes, object]] = {
        "train": {b"data": _planes(1, 200), b"fine_labels": [index % 100 for index in range(200)]},
        "test": {b"data": _planes(2, 100), b"fine_labels": list(range(100))},
        "meta": {b"fine_label_names": [name.encode() for name in names]},
    }
    for name, content in contents.items():
        (folder / name).write_bytes(pickled(content))
    archive = root / "cifar-100-python.tar.gz"
    with tarfile.open(archive, "w:gz") as tar:
        tar.add(folder, arcname=folder.name)
    files = [archive, *(folder / name for name in contents)]
    checksums = {file.name: hashlib.md5(file.read_bytes()).hexdigest() for file in files}
    monkeypatch.setattr(cifar100_archive, "CHECKSUMS", checksums)
    return archive


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A web server on loopback that has the made archive, in the place of the published address; yields the archive."""
    archive = publish(tmp_path / "server", monkeypatch)
    for variable in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(variable, raising=False)

    class Handler(SimpleHTTPRequestHandler):
        def __init__(self, *arguments: object) -> None:
            super().__init__(*arguments, directory=str(archive.parent))

        def log_message(self, format: str, *arguments: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as listening:
        url = f"http://127.0.0.1:{listening.server_port}/{archive.name}"
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
    assert source.division == CIFAR100


def test_the_published_folder_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    publish(tmp_path, monkeypatch)
    _check_published(load_source(tmp_path))


def test_the_published_archive_is_read_and_nothing_is_left_beside_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    archive = publish(tmp_path / "made", monkeypatch)
    (tmp_path / "given").mkdir()
    archive.rename(tmp_path / "given" / archive.name)
    _check_published(load_source(tmp_path / "given"))
    assert [path.name for path in (tmp_path / "given").iterdir()] == [archive.name]


def test_a_changed_byte_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    archive = publish(tmp_path, monkeypatch)
    train = tmp_path / "cifar-100-python" / "train"
    changed = bytearray(train.read_bytes())
    changed[1000] ^= 1
    train.write_bytes(changed)
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


def test_of_two_runs_that_begin_together_one_fetches_and_the_other_waits(
    server: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept, keep = [], cifar100_archive.keep

    def keep_slowly(data: bytes, root: Path) -> None:
        kept.append(root)
        time.sleep(0.3)
        keep(data, root)

    monkeypatch.setattr(cifar100_archive, "keep", keep_slowly)
    with ThreadPoolExecutor(2) as both:
        assert list(both.map(images.fetch_published, [tmp_path / "cache"] * 2)) == [None, None]
    assert len(kept) == 1
    _check_published(load_source(cache=tmp_path / "cache"))


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
