"""The encryption key: HPKE by an independent reading of RFC 9180, public keys that must not be used, and its file."""

import hashlib
import hmac
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.mlkem import MLKEM768PrivateKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from protocol.errors import InputError
from protocol.keys import key_file
from protocol.keys.encryption_key import EncryptionKey, check_encryption_public, seal_to
from protocol.keys.kem import Kem
from protocol.keys.key_file import PrivateKey, Unlock
from protocol.keys.signing_key import SigningKey

FILE = Unlock("hkdf-sha256", bytes(range(32)))
RAW: dict[Kem, bytes] = {"x25519": b"x" * 32, "mlkem768-x25519": b"m" * 64 + b"x" * 32}
INFO = b"run, request, audience"
MESSAGE = b"a content key of thirty-two byte"
kems = pytest.mark.parametrize("kem", RAW)


@kems
def test_what_is_sealed_opens_and_nothing_else_does(kem: Kem) -> None:
    key, other = EncryptionKey.from_raw(kem, RAW[kem]), EncryptionKey.generate(kem)
    sealed = seal_to(kem, key.public, MESSAGE, INFO)
    assert key.open(sealed, INFO) == MESSAGE
    assert len(sealed) == {"x25519": 32, "mlkem768-x25519": 1120}[kem] + len(MESSAGE) + 16
    assert sealed != seal_to(kem, key.public, MESSAGE, INFO)
    refused = [(key, sealed, INFO + b"."), (key, sealed, b""), (other, sealed, INFO), (key, sealed + b"x", INFO)]
    refused += [(key, sealed[:size], INFO) for size in (0, 1, 31, 32, 48, len(sealed) - 1)]
    for opener, data, info in refused:
        with pytest.raises(ValueError, match="sealed to another key"):
            opener.open(data, info)


@kems
def test_every_flipped_byte_of_what_is_sealed_is_refused(kem: Kem) -> None:
    key = EncryptionKey.from_raw(kem, RAW[kem])
    sealed = seal_to(kem, key.public, MESSAGE, INFO)
    for position in range(len(sealed)):
        altered = bytearray(sealed)
        altered[position] ^= 1
        with pytest.raises(ValueError, match="sealed to another key"):
            key.open(bytes(altered), INFO)


def test_one_kind_does_not_open_the_other_s() -> None:
    plain, hybrid = (EncryptionKey.from_raw(kem, raw) for kem, raw in RAW.items())
    assert hybrid.public[-32:] == plain.public  # the same X25519 half, and it does not help
    with pytest.raises(ValueError, match="sealed to another key"):
        plain.open(seal_to("mlkem768-x25519", hybrid.public, MESSAGE, INFO), INFO)
    with pytest.raises(ValueError, match="sealed to another key"):
        hybrid.open(seal_to("x25519", plain.public, MESSAGE, INFO), INFO)


# HPKE by RFC 9180, sections 4.1, 5.1 and 7.1, from HMAC, X25519 and AES-GCM alone.


def labeled_extract(suite: bytes, salt: bytes, label: bytes, key: bytes) -> bytes:
    return hmac.digest(salt or bytes(32), b"HPKE-v1" + suite + label + key, "sha256")


def labeled_expand(suite: bytes, key: bytes, label: bytes, info: bytes, length: int) -> bytes:
    # No more than one block is ever asked for here.
    return hmac.digest(key, length.to_bytes(2, "big") + b"HPKE-v1" + suite + label + info + b"\x01", "sha256")[:length]


def shared_secret_x25519(secret: bytes, encapsulated: bytes) -> bytes:
    """DHKEM(X25519, HKDF-SHA256): Decap."""
    private = X25519PrivateKey.from_private_bytes(secret)
    agreed = private.exchange(X25519PublicKey.from_public_bytes(encapsulated))
    suite = b"KEM\x00\x20"
    extracted = labeled_extract(suite, b"", b"eae_prk", agreed)
    context = encapsulated + private.public_key().public_bytes_raw()
    return labeled_expand(suite, extracted, b"shared_secret", context, 32)


def shared_secret_hybrid(seed: bytes, secret: bytes, encapsulated: bytes) -> bytes:
    """X-Wing (draft-connolly-cfrg-xwing-kem), section 5.3, which the hybrid of HPKE is."""
    private = X25519PrivateKey.from_private_bytes(secret)
    lattice = MLKEM768PrivateKey.from_seed_bytes(seed).decapsulate(encapsulated[:1088])
    agreed = private.exchange(X25519PublicKey.from_public_bytes(encapsulated[1088:]))
    public = private.public_key().public_bytes_raw()
    return hashlib.sha3_256(lattice + agreed + encapsulated[1088:] + public + rb"\.//^" + b"\\").digest()


def schedule(kem_id: int, aead_id: int, shared: bytes, info: bytes, key_bytes: int) -> tuple[bytes, bytes]:
    """Key and nonce of the base mode with HKDF-SHA256."""
    suite = b"HPKE" + b"".join(number.to_bytes(2, "big") for number in (kem_id, 1, aead_id))
    context = (
        b"\x00" + labeled_extract(suite, b"", b"psk_id_hash", b"") + labeled_extract(suite, b"", b"info_hash", info)
    )
    secret = labeled_extract(suite, shared, b"secret", b"")
    return (
        labeled_expand(suite, secret, b"key", context, key_bytes),
        labeled_expand(suite, secret, b"base_nonce", context, 12),
    )


def test_rfc_9180_vector_of_the_independent_reading() -> None:
    """Appendix A.1.1: X25519, HKDF-SHA256, and there AES-128-GCM."""
    shared = shared_secret_x25519(
        bytes.fromhex("4612c550263fc8ad58375df3f557aac531d26850903e55a9f23f21d8534e8ac8"),
        bytes.fromhex("37fda3567bdbd628e88668c3c8d7e97d1d1253b6d4ea6d44c150f741f1bf4431"),
    )
    assert shared.hex() == "fe0e18c9f024ce43799ae393c7e8fe8fce9d218875e8227b0187c04e7d2ea1fc"
    key, nonce = schedule(0x0020, 1, shared, b"Ode on a Grecian Urn", 16)
    assert (key.hex(), nonce.hex()) == ("4531685d41d65f03dc48f6b8302c05b0", "56d890e5accaaf011cff4b7d")
    sealed = AESGCM(key).encrypt(nonce, b"Beauty is truth, truth beauty", b"Count-0")
    assert sealed.hex() == (
        "f938558b5d72f1a23810b4be2ab4f84331acc02fc97babc53a52ae8218a355a96d8770ac83d07bea87e13c512a"
    )


def test_rfc_9180_opens_what_is_sealed_to_x25519() -> None:
    key = EncryptionKey.from_raw("x25519", RAW["x25519"])
    sealed = seal_to("x25519", key.public, MESSAGE, INFO)
    shared = shared_secret_x25519(RAW["x25519"], sealed[:32])
    aead, nonce = schedule(0x0020, 2, shared, INFO, 32)
    assert AESGCM(aead).decrypt(nonce, sealed[32:], b"") == MESSAGE


def test_x_wing_opens_what_is_sealed_to_the_hybrid() -> None:
    raw = RAW["mlkem768-x25519"]
    key = EncryptionKey.from_raw("mlkem768-x25519", raw)
    sealed = seal_to("mlkem768-x25519", key.public, MESSAGE, INFO)
    shared = shared_secret_hybrid(raw[:64], raw[64:], sealed[:1120])
    aead, nonce = schedule(0x647A, 2, shared, INFO, 32)
    assert AESGCM(aead).decrypt(nonce, sealed[1120:], b"") == MESSAGE


# Public keys that must not be used. RFC 7748, section 6.1: the u-coordinates of small order, canonically encoded.

P = 2**255 - 19
SMALL_ORDER = [
    0,
    1,
    325606250916557431795983626356110631294008115727848805560023387167927233504,
    39382357235489614581723060781553021112529911719440698176882885853963445705823,
    P - 1,
]


def public_of(kem: Kem, u: bytes) -> bytes:
    return u if kem == "x25519" else EncryptionKey.from_raw(kem, RAW[kem]).public[:-32] + u


@kems
@pytest.mark.parametrize("u", SMALL_ORDER)
def test_small_order_public_key_is_refused(kem: Kem, u: int) -> None:
    public = public_of(kem, u.to_bytes(32, "little"))
    with pytest.raises(ValueError, match="small order"):
        seal_to(kem, public, MESSAGE, INFO)
    with pytest.raises(ValueError, match="small order"):
        check_encryption_public(kem, public)


@kems
@pytest.mark.parametrize("u", [P, P + 1, P + 9, 2**255 - 1, 9 + 2**255, 2**256 - 1])
def test_non_canonical_public_key_is_refused(kem: Kem, u: int) -> None:
    with pytest.raises(ValueError, match="not canonically"):
        seal_to(kem, public_of(kem, u.to_bytes(32, "little")), MESSAGE, INFO)


def test_a_public_key_that_is_no_vector_modulo_q_is_refused() -> None:
    public = EncryptionKey.from_raw("mlkem768-x25519", RAW["mlkem768-x25519"]).public
    check_encryption_public("mlkem768-x25519", public)
    with pytest.raises(ValueError, match="FIPS 203"):
        seal_to("mlkem768-x25519", b"\xff\xff\xff" + public[3:], MESSAGE, INFO)


@kems
@pytest.mark.parametrize("size", [0, 31, 33, 1184, 1215, 1217])
def test_a_public_key_of_another_size_is_refused(kem: Kem, size: int) -> None:
    with pytest.raises(ValueError, match=f"not {size}"):
        seal_to(kem, b"\x09" * size, MESSAGE, INFO)


@kems
def test_every_generated_key_can_be_sealed_to(kem: Kem) -> None:
    keys = [EncryptionKey.generate(kem) for _ in range(8)]
    assert len({key.public for key in keys}) == 8
    for key in keys:
        check_encryption_public(kem, key.public)


@kems
@pytest.mark.parametrize("size", [0, 31, 33, 64, 95, 97])
def test_a_private_key_of_another_size_is_a_mistake_of_ours(kem: Kem, size: int) -> None:
    with pytest.raises(ValueError, match=f"not {size}"):
        EncryptionKey.from_raw(kem, bytes(size))


# Its file.


@kems
def test_save_and_load(tmp_path: Path, kem: Kem) -> None:
    key = EncryptionKey.generate(kem)
    key.save(tmp_path / "key", FILE)
    again = EncryptionKey.load(tmp_path / "key", FILE)
    assert (again.kem, again.public) == (kem, key.public)
    assert again.open(seal_to(kem, key.public, MESSAGE, INFO), INFO) == MESSAGE
    assert RAW[kem].hex() not in repr(EncryptionKey.from_raw(kem, RAW[kem]))


def test_a_signing_key_is_none(tmp_path: Path) -> None:
    SigningKey.generate().save(tmp_path / "key", FILE)
    with pytest.raises(InputError, match="of the kind ed25519, here is needed: x25519 or mlkem768-x25519"):
        EncryptionKey.load(tmp_path / "key", FILE)


@kems
def test_a_file_that_names_another_public_key_or_too_few_bytes_is_refused(tmp_path: Path, kem: Kem) -> None:
    """Only who can lock a file writes such a one; the public key that it shows must still be its own."""
    key_file.write(tmp_path / "other", PrivateKey(kem, EncryptionKey.generate(kem).public, RAW[kem]), FILE)
    with pytest.raises(InputError, match="not its own"):
        EncryptionKey.load(tmp_path / "other", FILE)
    key_file.write(tmp_path / "short", PrivateKey(kem, EncryptionKey.generate(kem).public, bytes(40)), FILE)
    with pytest.raises(InputError, match="short holds no key of the kind"):
        EncryptionKey.load(tmp_path / "short", FILE)
