"""Private keys at rest: what a thief of the file has, what a forger of one achieves, and who may read it."""

import hashlib
import hmac
import json
import os
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.kdf.argon2 import Argon2id
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    NoEncryption,
    PrivateFormat,
)

from protocol.errors import InputError
from protocol.keys import key_file
from protocol.keys.key_file import Kind, PrivateKey, Unlock, lock, make_key_file, open_locked, read, write

KEY = PrivateKey("ed25519", b"p" * 32, b"s" * 32)
PASSPHRASE = Unlock.passphrase("five words make a passphrase")
FILE = Unlock("hkdf-sha256", bytes(range(32)))


def private(path: Path, data: bytes, mode: int = 0o600) -> Path:
    path.write_bytes(data)
    path.chmod(mode)
    return path


def changed(data: bytes, **changes: object) -> bytes:
    """The file with other values; ``kdf_NAME`` is a parameter of its key derivation."""
    content = json.loads(data)
    for name, value in changes.items():
        if name.startswith("kdf_"):
            content["kdf"][name.removeprefix("kdf_")] = value
        else:
            content[name] = value
    return json.dumps(content, sort_keys=True, separators=(",", ":")).encode("ascii")


@pytest.mark.parametrize("unlock", [PASSPHRASE, FILE])
@pytest.mark.parametrize(
    "key", [KEY, PrivateKey("x25519", b"q" * 32, b"t" * 32), PrivateKey("mlkem768-x25519", b"q" * 1216, b"t" * 96)]
)
def test_a_key_comes_back_as_it_was(tmp_path: Path, key: PrivateKey, unlock: Unlock) -> None:
    write(tmp_path / "key", key, unlock)
    assert stat.S_IMODE((tmp_path / "key").stat().st_mode) == 0o600
    assert read(tmp_path / "key", [key.kind], unlock) == key


@pytest.mark.parametrize("unlock", [PASSPHRASE, FILE])
def test_a_file_holds_neither_the_key_nor_what_opens_it(unlock: Unlock) -> None:
    data = lock(KEY, unlock)
    for secret in (KEY.raw, unlock.secret):
        assert secret not in data
        assert secret.hex().encode() not in data
        assert repr(secret) not in repr(unlock) + repr(KEY)
    assert KEY.public.hex().encode() in data


def test_no_two_files_share_salt_nonce_or_ciphertext() -> None:
    one, other = json.loads(lock(KEY, FILE)), json.loads(lock(KEY, FILE))
    assert one["nonce"] != other["nonce"]
    assert one["kdf"]["salt"] != other["kdf"]["salt"]
    assert one["ciphertext"] != other["ciphertext"]


# An independent reading of the format: HKDF from HMAC alone, the authenticated header from the JSON.


def hkdf(secret: bytes, salt: bytes, info: bytes, length: int) -> bytes:
    """RFC 5869, section 2."""
    extracted = hmac.digest(salt, secret, "sha256")
    output, block = b"", b""
    for number in range(1, -(-length // 32) + 1):
        block = hmac.digest(extracted, block + info + bytes([number]), "sha256")
        output += block
    return output[:length]


def test_rfc_5869_vector() -> None:
    found = hkdf(b"\x0b" * 22, bytes(range(13)), bytes(range(0xF0, 0xFA)), 42)
    assert found.hex() == ("3cb25f25faacd57a90434f64d0362f2a2d2d0a90cf1a5a4c5db02d56ecc4c5bf34007208d5b887185865")


def test_rfc_9106_vector() -> None:
    """Section 5.3, of the function that the format uses."""
    derived = Argon2id(
        salt=b"\x02" * 16, length=32, iterations=3, lanes=4, memory_cost=32, ad=b"\x04" * 12, secret=b"\x03" * 8
    ).derive(b"\x01" * 32)
    assert derived.hex() == "0d640df58d78766c08c037a34a8b53c9d01ef0452d75b65eb52520e96b01e659"


def by_hkdf(secret: bytes, kdf: dict[str, Any]) -> bytes:
    assert set(kdf) == {"name", "salt"}
    return hkdf(secret, bytes.fromhex(kdf["salt"]), b"learngene private key 1", 32)


def by_argon2id(secret: bytes, kdf: dict[str, Any]) -> bytes:
    # RFC 9106, section 4, second recommended option: t = 3, p = 4, m = 2^16 KiB.
    assert (kdf["iterations"], kdf["lanes"], kdf["memory_kib"]) == (3, 4, 2**16)
    return Argon2id(salt=bytes.fromhex(kdf["salt"]), length=32, iterations=3, lanes=4, memory_cost=2**16).derive(secret)


@pytest.mark.parametrize(
    ("unlock", "derive"), [(FILE, by_hkdf), (PASSPHRASE, by_argon2id)], ids=["key file", "passphrase"]
)
def test_the_format_is_what_its_description_says(
    unlock: Unlock, derive: Callable[[bytes, dict[str, Any]], bytes]
) -> None:
    content = json.loads(lock(KEY, unlock))
    ciphertext = bytes.fromhex(content.pop("ciphertext"))
    header = json.dumps(content, sort_keys=True, separators=(",", ":")).encode("ascii")
    cipher = AESGCM(derive(unlock.secret, content["kdf"]))
    assert cipher.decrypt(bytes.fromhex(content["nonce"]), ciphertext, header) == KEY.raw
    assert content["public"] == KEY.public.hex()


# A file that was altered.


def test_every_flipped_bit_is_refused() -> None:
    data = lock(KEY, FILE)
    assert open_locked(data, FILE, name="key") == KEY
    for position in range(len(data)):
        for bit in range(8):
            altered = bytearray(data)
            altered[position] ^= 1 << bit
            with pytest.raises(InputError):
                open_locked(bytes(altered), FILE, name="key")


@pytest.mark.parametrize("size", [0, 1, 100, -1])
def test_a_cut_file_is_refused(size: int) -> None:
    with pytest.raises(InputError, match="no private key"):
        open_locked(lock(KEY, FILE)[:size], FILE, name="key")


@pytest.mark.parametrize(
    "changes",
    [
        {"kind": "x25519"},
        {"public": "ab" * 32},
        {"nonce": "ab" * 12},
        {"kdf_salt": "ab" * 32},
        {"kdf_iterations": 4},
        {"kdf_lanes": 3},
        {"kdf_memory_kib": 2**16 + 64},
        {"ciphertext": "ab" * 48},
    ],
)
def test_every_field_is_authenticated(changes: dict[str, object]) -> None:
    with pytest.raises(InputError, match="does not open: the passphrase is wrong, or the file was altered"):
        open_locked(changed(lock(KEY, PASSPHRASE), **changes), PASSPHRASE, name="key")


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"kdf_memory_kib": 2**18 + 1}, "memory_kib"),
        ({"kdf_memory_kib": 2**20}, "memory_kib"),
        # Each within its own limit, and together too much work.
        ({"kdf_memory_kib": 2**18, "kdf_iterations": 4}, "iterations times memory_kib"),
        ({"kdf_memory_kib": 2**16 + 1, "kdf_iterations": 12}, "iterations times memory_kib"),
        ({"kdf_memory_kib": 2**40}, "memory_kib"),
        ({"kdf_memory_kib": 8}, "memory_kib"),
        ({"kdf_memory_kib": -1}, "memory_kib"),
        ({"kdf_memory_kib": True}, "memory_kib"),
        ({"kdf_memory_kib": "65536"}, "memory_kib"),
        ({"kdf_iterations": 13}, "iterations"),
        ({"kdf_iterations": 10**9}, "iterations"),
        ({"kdf_iterations": 1}, "iterations"),
        ({"kdf_lanes": 0}, "lanes"),
        ({"kdf_lanes": 2**20}, "lanes"),
        ({"kdf_salt": ""}, "salt"),
        ({"kdf_name": "argon2d"}, "kdf"),
        ({"kdf_name": "pbkdf2"}, "kdf"),
        ({"kdf_secret": "x"}, "secret"),
        ({"format": 2}, "format"),
        ({"kind": "rsa"}, "kind"),
        ({"nonce": "ab" * 11}, "nonce"),
        ({"ciphertext": "ab" * 47}, "ciphertext"),
        ({"ciphertext": "AB" * 48}, "ciphertext"),
        ({"more": 1}, "more"),
    ],
)
def test_hostile_values_are_refused_before_anything_is_derived(
    monkeypatch: pytest.MonkeyPatch, changes: dict[str, object], said: str
) -> None:
    data = lock(KEY, PASSPHRASE)

    def derive(**_: object) -> NoReturn:
        raise ZeroDivisionError

    monkeypatch.setattr(key_file, "Argon2id", derive)
    with pytest.raises(ZeroDivisionError):
        open_locked(data, PASSPHRASE, name="key")
    with pytest.raises(InputError, match=f"key holds no private key that can be read: .*{said}") as error:
        open_locked(changed(data, **changes), PASSPHRASE, name="key")
    assert "\n" not in str(error.value)


def test_another_writing_of_the_same_content_is_refused() -> None:
    data = lock(KEY, FILE)
    spaced = json.dumps(json.loads(data)).encode()
    twice = data.replace(b'"format":1', b'"format":1,"format":1')
    for altered in (spaced, twice, data + b"\n", b" " + data):
        with pytest.raises(InputError, match="no private key"):
            open_locked(altered, FILE, name="key")


# What opens it.


def test_a_wrong_passphrase_is_refused() -> None:
    with pytest.raises(InputError, match=r"key does not open: the passphrase is wrong"):
        open_locked(lock(KEY, PASSPHRASE), Unlock.passphrase("five words make a passphrasf"), name="key")


def test_another_key_file_is_refused() -> None:
    with pytest.raises(InputError, match="key does not open: it was locked with another key file"):
        open_locked(lock(KEY, FILE), Unlock("hkdf-sha256", bytes(32)), name="key")


def test_a_key_file_in_place_of_the_passphrase_and_the_reverse_are_named() -> None:
    same = b"the same secret of more than 32 bytes, twice"
    with pytest.raises(InputError, match="opens with a passphrase, not with a key file"):
        open_locked(lock(KEY, Unlock("argon2id", same)), Unlock("hkdf-sha256", same), name="key")
    with pytest.raises(InputError, match="opens with a key file, not with a passphrase"):
        open_locked(lock(KEY, Unlock("hkdf-sha256", same)), Unlock("argon2id", same), name="key")


def test_a_passphrase_is_the_same_from_every_keyboard() -> None:
    composed, decomposed = (
        Unlock.passphrase("caf\u00e9 d\u00e9j\u00e0"),
        Unlock.passphrase("cafe\u0301 de\u0301ja\u0300"),
    )
    assert composed == decomposed
    assert composed != Unlock.passphrase("cafe deja")
    with pytest.raises(InputError, match="empty"):
        Unlock.passphrase("")


def test_a_made_key_file_opens(tmp_path: Path) -> None:
    make_key_file(tmp_path / "key.secret")
    assert stat.S_IMODE((tmp_path / "key.secret").stat().st_mode) == 0o600
    unlock = Unlock.key_file(tmp_path / "key.secret")
    assert len(unlock.secret) == 32
    write(tmp_path / "key", KEY, unlock)
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "key.secret").rename(tmp_path / "elsewhere" / "stick")
    assert read(tmp_path / "key", ["ed25519"], Unlock.key_file(tmp_path / "elsewhere" / "stick")) == KEY
    make_key_file(tmp_path / "key.secret")
    with pytest.raises(InputError, match="another key file"):
        read(tmp_path / "key", ["ed25519"], Unlock.key_file(tmp_path / "key.secret"))


@pytest.mark.parametrize("size", [0, 31, 32, 4096, 4097])
def test_a_key_file_has_32_to_4096_bytes(tmp_path: Path, size: int) -> None:
    path = private(tmp_path / "key.secret", os.urandom(size))
    if 32 <= size <= 4096:
        assert Unlock.key_file(path).secret == path.read_bytes()
    else:
        with pytest.raises(InputError, match=f"{path} has"):
            Unlock.key_file(path)


# Who may read it, and what it may be.

READERS: list[Callable[[Path], object]] = [Unlock.key_file, lambda path: read(path, ["ed25519"], FILE)]
readers = pytest.mark.parametrize("reader", READERS, ids=["key file", "private key"])


def good(path: Path) -> Path:
    """A file that both readers accept."""
    private(path, lock(KEY, FILE))
    for reader in READERS:
        reader(path)
    return path


@readers
@pytest.mark.parametrize("mode", [0o640, 0o604, 0o620, 0o602, 0o644, 0o610, 0o601, 0o666])
def test_a_file_that_others_reach_is_refused(tmp_path: Path, reader: Callable[[Path], object], mode: int) -> None:
    path = good(tmp_path / "file")
    path.chmod(mode)
    with pytest.raises(InputError, match=r"must belong to you alone.*chmod 600"):
        reader(path)


@readers
def test_another_user_s_file_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, reader: Callable[[Path], object]
) -> None:
    path = good(tmp_path / "file")
    user = os.geteuid()
    monkeypatch.setattr(os, "geteuid", lambda: user + 1)
    with pytest.raises(InputError, match="must belong to you alone: chown"):
        reader(path)


@readers
def test_a_symbolic_link_is_refused(tmp_path: Path, reader: Callable[[Path], object]) -> None:
    good(tmp_path / "file")
    (tmp_path / "link").symlink_to(tmp_path / "file")
    with pytest.raises(InputError, match="link is a symbolic link"):
        reader(tmp_path / "link")


@readers
def test_a_pipe_is_refused_without_waiting(tmp_path: Path, reader: Callable[[Path], object]) -> None:
    os.mkfifo(tmp_path / "pipe", 0o600)
    with pytest.raises(InputError, match="pipe is not a file"):
        reader(tmp_path / "pipe")


@readers
def test_a_folder_a_device_and_nothing_are_refused(tmp_path: Path, reader: Callable[[Path], object]) -> None:
    with pytest.raises(InputError, match="is not a file"):
        reader(tmp_path)
    with pytest.raises(InputError, match="/dev/zero"):
        reader(Path("/dev/zero"))
    with pytest.raises(InputError, match=r"cannot read .*nowhere"):
        reader(tmp_path / "nowhere")


def test_a_file_of_another_size_is_not_read_whole(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="more than 16384 bytes"):
        read(private(tmp_path / "file", bytes(16385)), ["ed25519"], FILE)


@pytest.mark.parametrize(
    ("form", "encryption"),
    [
        (PrivateFormat.PKCS8, NoEncryption()),
        (PrivateFormat.PKCS8, BestAvailableEncryption(b"five words make a passphrase")),
        (PrivateFormat.OpenSSH, NoEncryption()),
    ],
)
def test_a_pem_file_is_refused(
    tmp_path: Path, form: PrivateFormat, encryption: NoEncryption | BestAvailableEncryption
) -> None:
    data = Ed25519PrivateKey.generate().private_bytes(Encoding.PEM, form, encryption)
    for unlock in (PASSPHRASE, FILE):
        with pytest.raises(InputError, match=r"is a PEM file.*keygen"):
            read(private(tmp_path / "key", data), ["ed25519"], unlock)


@pytest.mark.parametrize("data", [b"", b"hello", b"\xff" * 100, b"[]", b"{}", b"{" * 10000, b"s" * 32])
def test_what_is_no_key_is_refused(tmp_path: Path, data: bytes) -> None:
    with pytest.raises(InputError, match="holds no private key that can be read"):
        read(private(tmp_path / "key", data), ["ed25519"], FILE)


@pytest.mark.parametrize("kind", ["x25519", "mlkem768-x25519"])
def test_a_key_of_another_kind_is_named(tmp_path: Path, kind: Kind) -> None:
    write(tmp_path / "key", KEY, FILE)
    with pytest.raises(InputError, match=f"of the kind ed25519, here is needed: {kind}"):
        read(tmp_path / "key", [kind], FILE)


def test_nothing_is_ever_overwritten(tmp_path: Path) -> None:
    write(tmp_path / "key", KEY, FILE)
    before = hashlib.sha256((tmp_path / "key").read_bytes()).digest()
    (tmp_path / "dangling").symlink_to(tmp_path / "nowhere")
    for path in (tmp_path / "key", tmp_path / "dangling"):
        with pytest.raises(InputError, match="not overwritten"):
            write(path, KEY, FILE)
        with pytest.raises(InputError, match="not overwritten"):
            make_key_file(path)
    assert hashlib.sha256((tmp_path / "key").read_bytes()).digest() == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["dangling", "key"]
    with pytest.raises(InputError, match="there is no folder"):
        write(tmp_path / "none" / "key", KEY, FILE)


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="counts threads in /proc")
def test_opening_with_a_passphrase_leaves_no_thread() -> None:
    """A node opens its keys before it is confined, and a thread from before would stay outside."""
    before = len(os.listdir("/proc/self/task"))
    open_locked(lock(KEY, PASSPHRASE), PASSPHRASE, name="key")
    assert len(os.listdir("/proc/self/task")) == before
