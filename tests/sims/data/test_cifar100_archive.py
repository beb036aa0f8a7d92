"""The published CIFAR-100: read as torchvision reads it, but nothing in it runs."""

import os
import pickle
import resource
import warnings
from pathlib import Path

import numpy as np
import pytest

from protocol.errors import InputError
from sims.data import cifar100_archive
from sims.data.cifar100_archive import plain_values, read_archive, read_folder
from tests.sims.data.python2_pickle import pickled
from tests.sims.data.test_images import publish


class Planted:
    """Runs a command wherever it is unpickled."""

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.system, ("true",)


def test_the_made_pickles_are_what_an_unpickler_takes_for_arrays() -> None:
    """The control of all tests of this reader: its input is of the published kind."""
    planes = np.random.default_rng(0).integers(0, 256, (3, 7), dtype=np.uint8)
    with warnings.catch_warnings(action="ignore"):
        found = pickle.loads(pickled({b"data": planes, b"labels": [1, 2]}), encoding="latin1")  # noqa: S301 - made here
    np.testing.assert_array_equal(found["data"], planes, strict=True)
    assert found["labels"] == [1, 2]


HOSTILE = {
    "a command": pickle.dumps(Planted(), protocol=2),
    "a command inside": pickle.dumps({"data": [Planted()]}, protocol=2),
    "an old command": b"cos\nsystem\n(S'true'\ntR.",
    "a module's inside": b"\x80\x04\x8c\x05numpy\x8c\x13core.multiarray.sys\x93.",
    "another of numpy's": b"cnumpy\nload\n(S'/etc/passwd'\ntR.",
    "builtins": b"c__builtin__\neval\n(S'1'\ntR.",
    "a reference": b"\x80\x02U\x01aQ.",
    "an extension": b"\x80\x02\x82\x01.",
    "no pickle": b"no pickle",
    "half of one": pickled({b"a": [1, 2, 3]})[:-9],
    "nothing": b"",
}


@pytest.mark.parametrize("name", HOSTILE)
def test_attack_a_pickle_that_is_more_than_values(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setattr(os, "system", lambda *_: pytest.fail("a command ran"))
    with pytest.raises(ValueError, match="no plain values"):
        plain_values(HOSTILE[name])


def test_the_command_runs_in_a_plain_unpickler(monkeypatch: pytest.MonkeyPatch) -> None:
    """The control."""
    ran = []
    monkeypatch.setattr(os, "system", ran.append)
    pickle.loads(HOSTILE["an old command"])  # noqa: S301 - it is harmless
    assert ran == ["true"]


def test_attack_a_pickle_that_says_it_has_two_thousand_million_values() -> None:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert plain_values(b"\x80\x02]r\xff\xff\xff\x7f.") == []
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss < before + (64 << 10)


def planes(count: int, side: int = 3072) -> np.ndarray:
    return np.zeros((count, side), np.uint8)


@pytest.mark.parametrize(
    "train",
    [
        {b"data": planes(2), b"fine_labels": [0, 100]},
        {b"data": planes(2), b"fine_labels": [0, -1]},
        {b"data": planes(2), b"fine_labels": [0]},
        {b"data": planes(2, 3071), b"fine_labels": [0, 1]},
        {b"data": planes(2), b"fine_labels": [0, b"a"]},
        {b"data": planes(2), b"fine_labels": []},
        {b"data": planes(2)},
        {b"data": b"", b"fine_labels": [0, 1]},
        {b"fine_labels": [0, 1]},
        {b"data": [1, 2], b"fine_labels": [0, 1]},
        [1, 2],
    ],
)
def test_attack_files_that_have_the_checksum_and_do_not_fit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, train: object
) -> None:
    """As if somebody had found other files with these checksums."""
    publish(tmp_path, monkeypatch)
    read_folder(tmp_path)
    (tmp_path / "cifar-100-python" / "train").write_bytes(pickled(train))
    monkeypatch.setattr(cifar100_archive, "_is_published", lambda name, data: True)
    with pytest.raises(InputError, match="is not the published CIFAR-100"):
        read_folder(tmp_path)


def test_attack_what_is_no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    archive = publish(tmp_path, monkeypatch)
    train = tmp_path / "cifar-100-python" / "train"
    train.unlink()
    os.mkfifo(train)
    with pytest.raises(InputError, match="train"):
        read_folder(tmp_path)
    with archive.open("ab") as file:
        file.truncate(1 << 40)
    with pytest.raises(InputError, match="at most"):
        read_archive(archive)
