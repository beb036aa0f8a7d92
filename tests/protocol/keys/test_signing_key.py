"""Signing keys: the vectors of RFC 8032, their files and fingerprints, and public keys that must not be pinned."""

import stat
from pathlib import Path

import pytest

from protocol.encoding import proquint
from protocol.errors import BadSignatureError, InputError
from protocol.keys import key_file
from protocol.keys.encryption_key import EncryptionKey
from protocol.keys.key_file import PrivateKey, Unlock
from protocol.keys.signing_key import (
    SigningKey,
    check_public_key,
    check_signature,
    fingerprint,
    key_identifier,
    read_fingerprint,
)

P = 2**255 - 19

# RFC 8032, section 7.1: seed, public key, message, signature.
VECTORS = [
    (
        "9d61b19deffd5a60ba844af492ec2cc44449c5697b326919703bac031cae7f60",
        "d75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a",
        "",
        "e5564300c360ac729086e2cc806e828a84877f1eb8e5d974d873e065224901555fb8821590a33bacc61e39701cf9b46b"
        "d25bf5f0595bbe24655141438e7a100b",
    ),
    (
        "4ccd089b28ff96da9db6c346ec114e0f5b8a319f35aba624da8cf6ed4fb8a6fb",
        "3d4017c3e843895a92b70aa74d1b7ebc9c982ccf2ec4968cc0cd55f12af4660c",
        "72",
        "92a009a9f0d4cab8720e820b5f642540a2b27b5416503f8fb3762223ebdb69da085ac1e43e15996e458f3613d0f11d8c"
        "387b2eaeb4302aeeb00d291612bb0c00",
    ),
]


@pytest.mark.parametrize(("seed", "public", "message", "signature"), VECTORS)
def test_rfc_8032_vectors(seed: str, public: str, message: str, signature: str) -> None:
    key = SigningKey.from_seed(bytes.fromhex(seed))
    assert key.public_hex == public
    assert key.sign(bytes.fromhex(message)).hex() == signature
    check_signature(bytes.fromhex(public), bytes.fromhex(signature), bytes.fromhex(message))
    check_public_key(bytes.fromhex(public))
    with pytest.raises(BadSignatureError):
        check_signature(bytes.fromhex(public), bytes.fromhex(signature), b"another message")


def test_a_malleable_signature_is_refused() -> None:
    """S + L signs the same equation; RFC 8032, section 5.1.7 demands S < L."""
    key = SigningKey.from_seed(b"m" * 32)
    signature = key.sign(b"message")
    order = 2**252 + 27742317777372353535851937790883648493
    other = signature[:32] + (int.from_bytes(signature[32:], "little") + order).to_bytes(32, "little")
    check_signature(bytes.fromhex(key.public_hex), signature, b"message")
    with pytest.raises(BadSignatureError):
        check_signature(bytes.fromhex(key.public_hex), other, b"message")


def test_the_key_id_is_the_digest_of_the_raw_public_key() -> None:
    key = SigningKey.from_seed(bytes.fromhex(VECTORS[0][0]))
    assert key.keyid == key_identifier(bytes.fromhex(key.public_hex))
    assert key.keyid == "21fe31dfa154a261626bf854046fd2271b7bed4b6abe45aa58877ef47f9721b9"
    assert SigningKey.generate().keyid != SigningKey.generate().keyid
    assert VECTORS[0][0] not in repr(key)


FILE = Unlock("hkdf-sha256", bytes(range(32)))


@pytest.mark.parametrize("unlock", [FILE, Unlock.passphrase("five words make a passphrase")])
def test_save_and_load(tmp_path: Path, unlock: Unlock) -> None:
    key = SigningKey.generate()
    key.save(tmp_path / "key", unlock)
    assert stat.S_IMODE((tmp_path / "key").stat().st_mode) == 0o600
    again = SigningKey.load(tmp_path / "key", unlock)
    assert again.keyid == key.keyid
    check_signature(bytes.fromhex(key.public_hex), again.sign(b"message"), b"message")


def test_a_key_is_never_overwritten(tmp_path: Path) -> None:
    key = SigningKey.generate()
    key.save(tmp_path / "key", FILE)
    with pytest.raises(InputError, match="not overwritten"):
        SigningKey.generate().save(tmp_path / "key", FILE)
    assert SigningKey.load(tmp_path / "key", FILE).keyid == key.keyid


def test_an_encryption_key_does_not_sign(tmp_path: Path) -> None:
    EncryptionKey.generate().save(tmp_path / "key", FILE)
    with pytest.raises(InputError, match="of the kind x25519, here is needed: ed25519"):
        SigningKey.load(tmp_path / "key", FILE)


def test_a_file_that_names_another_public_key_or_too_many_bytes_is_refused(tmp_path: Path) -> None:
    """Only who can lock a file writes such a one; the public key that it shows must still be its own."""
    seed, other = b"m" * 32, bytes.fromhex(SigningKey.generate().public_hex)
    key_file.write(tmp_path / "other", PrivateKey("ed25519", other, seed), FILE)
    with pytest.raises(InputError, match="not its own"):
        SigningKey.load(tmp_path / "other", FILE)
    key_file.write(tmp_path / "long", PrivateKey("ed25519", other, seed + seed), FILE)
    with pytest.raises(InputError, match="long holds no Ed25519 key"):
        SigningKey.load(tmp_path / "long", FILE)


def test_a_fingerprint_is_the_first_half_of_the_key_id_in_words() -> None:
    key = SigningKey.from_seed(bytes.fromhex(VECTORS[0][0]))
    assert key.fingerprint == fingerprint(bytes.fromhex(key.public_hex))
    assert proquint.decode(key.fingerprint).hex() == key.keyid[:32]
    assert key.fingerprint.count("-") == 7
    said = key.fingerprint.upper().replace("-", ", ", 3).replace("-", " ")
    assert said != key.fingerprint
    assert read_fingerprint(said) == key.fingerprint
    assert SigningKey.generate().fingerprint != key.fingerprint


@pytest.mark.parametrize(
    ("typed", "said"),
    [
        ("", "8 words, not 0"),
        ("lusab-babad", "8 words, not 2"),
        ("-".join(["lusab"] * 9), "8 words, not 9"),
        ("-".join(["lusab"] * 7 + ["lusax"]), "'lusax'"),
        ("21fe31dfa154a261626bf854046fd227", "five letters"),
    ],
)
def test_what_is_no_fingerprint_is_one_clear_error(typed: str, said: str) -> None:
    assert read_fingerprint("-".join(["lusab"] * 8))
    with pytest.raises(InputError, match=said):
        read_fingerprint(typed)


# The points whose order divides 8, by their encodings.
SMALL_ORDER = [
    "0000000000000000000000000000000000000000000000000000000000000000",
    "0000000000000000000000000000000000000000000000000000000000000080",
    "0100000000000000000000000000000000000000000000000000000000000000",
    "ecffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
    "26e8958fc2b227b045c3f489f2ef98f0d5dfac05d3c63339b13802886d53fc05",
    "26e8958fc2b227b045c3f489f2ef98f0d5dfac05d3c63339b13802886d53fc85",
    "c7176a703d4dd84fba3c0b760d10670f2a2053fa2c39ccc64ec7fd7792ac037a",
    "c7176a703d4dd84fba3c0b760d10670f2a2053fa2c39ccc64ec7fd7792ac03fa",
]


@pytest.mark.parametrize("public", SMALL_ORDER)
def test_small_order_public_key_is_refused(public: str) -> None:
    with pytest.raises(InputError, match="small order"):
        check_public_key(bytes.fromhex(public))


@pytest.mark.parametrize("y", [P, P + 1, P + 18, 2**255 - 1])
@pytest.mark.parametrize("sign", [0, 1])
def test_non_canonical_public_key_is_refused(y: int, sign: int) -> None:
    with pytest.raises(InputError, match="not canonically"):
        check_public_key((y | sign << 255).to_bytes(32, "little"))


def test_a_public_key_off_the_curve_or_of_another_length_is_refused() -> None:
    # x = 0 has no negative: the sign bit makes no second encoding of the points with y = 1 and y = -1.
    for encoded in (2, 1 | 1 << 255, P - 1 | 1 << 255):
        with pytest.raises(InputError, match="no point"):
            check_public_key(encoded.to_bytes(32, "little"))
    for size in (0, 31, 33):
        with pytest.raises(InputError, match="32 bytes"):
            check_public_key(bytes(size))


def test_half_of_all_strings_are_points_and_every_generated_key_is() -> None:
    refused = 0
    for y in range(2, 66):
        try:
            check_public_key(y.to_bytes(32, "little"))
        except InputError:
            refused += 1
    assert 16 < refused < 48
    for _ in range(8):
        check_public_key(bytes.fromhex(SigningKey.generate().public_hex))
