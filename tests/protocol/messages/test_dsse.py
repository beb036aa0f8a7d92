"""DSSE and Ed25519 as others know them: published vectors, agreement with securesystemslib, keys that allow forgery."""

import base64
import json
from hashlib import sha512

import pytest
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ec import ECDSA, SECP256R1, EllipticCurvePublicNumbers
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature
from cryptography.hazmat.primitives.hashes import SHA256
from securesystemslib.dsse import Envelope as OtherEnvelope
from securesystemslib.exceptions import VerificationError
from securesystemslib.signer import CryptoSigner, SSlibKey  # type: ignore[attr-defined]

from protocol.encoding import canonical_json
from protocol.errors import BadSignatureError, InputError, MalformedError
from protocol.keys import signing_key
from protocol.keys.signing_key import SigningKey, check_public_key, check_signature
from protocol.messages import envelope
from protocol.messages.builders import make_abort, make_receipt
from protocol.messages.envelope import Envelope, pre_authentication_encoding
from tests.protocol.parties import COLLECTIVE, INDIVIDUAL, NOW, RUN, STRANGER, TRUST, Exchange

P = 2**255 - 19

# secure-systems-lab/dsse, testvectors/vectors.json: the keys are those of RFC 8032, section 7.1.
KEY_A = SigningKey.from_seed(bytes.fromhex("9d61b19deffd5a60ba844af492ec2cc44449c5697b326919703bac031cae7f60"))
KEY_B = SigningKey.from_seed(bytes.fromhex("4ccd089b28ff96da9db6c346ec114e0f5b8a319f35aba624da8cf6ed4fb8a6fb"))
IN_TOTO = "application/vnd.in-toto+json"
STATEMENT = b'{"_type":"https://in-toto.io/Statement/v1"}'
SIGNED_BY_A = "2WAfaHm5jluo0w+0rk8uVkluELJYWjSmU9x7EUzx+AyteDGJ4/nqyJXfmAUVFIAoQafWm7AxBZNw5M9ixNHiCA=="
SIGNED_BY_B = "c1+67/aT0yqEpwx8PsVY3MLHsj9D0CZ014/Fv/QlG59P+9CobUZ7xECJ/V3USG0Ob9CiE5LjReEZUzNF2l7eBw=="
VECTORS = {
    "single-signature": (KEY_A, IN_TOTO, STATEMENT, SIGNED_BY_A),
    "threshold-two-distinct-keys": (KEY_B, IN_TOTO, STATEMENT, SIGNED_BY_B),
    "url-safe-base64": (
        KEY_A,
        IN_TOTO,
        b"\xfb\xff\xbf>?",
        "P+/KHICeR7tI6S/YyejJTRtrXhcQyQ2LYPaL8h90KjC9qN8HU/svOQ6TuDOT1HIrsGW886DbWNWcCmX5twLrAw==",
    ),
    "non-ascii-payload-type": (
        KEY_A,
        "application/vnd.exämple+json",
        STATEMENT,
        "xmSk/ug66ysT7ayhkCIjhAq42zgZXSsEWuzUaNL7w2eGAdF/NU6/fRXPtmfN+5DNSAs5/i2lUnHjbbjPsu0tAw==",
    ),
    "empty-payload": (
        KEY_A,
        IN_TOTO,
        b"",
        "gSggCAaTLTYyRH6FIDBem6meyIynsYy8RTHVzwx9tnTb7Bg/1jMWnuVgI/gffqmbsC2VX5/jHfkkDqsj7CDbDg==",
    ),
    "empty-payload-type": (
        KEY_A,
        "",
        STATEMENT,
        "iC3q/+3Rm0+lpAJRueDmDh15PnwCfxKmS0NAfKsbv+zgulXQC/WM9trc+j1XEqlwDIg/vf/uNfebeD6sxInrDg==",
    ),
}


@pytest.mark.parametrize("name", VECTORS)
def test_signatures_of_the_specification(name: str) -> None:
    key, payload_type, payload, signature = VECTORS[name]
    signed = pre_authentication_encoding(payload_type, payload)
    assert base64.b64encode(key.sign(signed)).decode("ascii") == signature
    check_signature(bytes.fromhex(key.public_hex), base64.b64decode(signature), signed)


def test_the_specification_s_swapped_payload_type_is_refused() -> None:
    opened = Envelope(IN_TOTO, STATEMENT, KEY_A.keyid, base64.b64decode(SIGNED_BY_A))
    envelope.check_signature(opened, bytes.fromhex(KEY_A.public_hex))
    swapped = Envelope("application/vnd.example.other+json", STATEMENT, KEY_A.keyid, opened.signature)
    with pytest.raises(BadSignatureError):
        envelope.check_signature(swapped, bytes.fromhex(KEY_A.public_hex))


def _vector(payload: str, *signatures: dict[str, str]) -> bytes:
    return canonical_json.encode({"payload": payload, "payloadType": IN_TOTO, "signatures": signatures})


def test_the_specification_s_envelope_is_read() -> None:
    data = _vector(base64.b64encode(STATEMENT).decode("ascii"), {"keyid": "A", "sig": SIGNED_BY_A})
    assert envelope.parse(data) == Envelope(IN_TOTO, STATEMENT, "A", base64.b64decode(SIGNED_BY_A))
    envelope.check_signature(envelope.parse(data), bytes.fromhex(KEY_A.public_hex))


@pytest.mark.parametrize(
    "data",
    [
        _vector(
            "-_-_Pj8=",
            {
                "keyid": "A",
                "sig": "P-_KHICeR7tI6S_YyejJTRtrXhcQyQ2LYPaL8h90KjC9qN8HU_svOQ6TuDOT1HIrsGW886DbWNWcCmX5twLrAw==",
            },
        ),
        _vector("e30=", {"keyid": "A", "sig": SIGNED_BY_A}, {"keyid": "B", "sig": SIGNED_BY_B}),
        _vector("e30=", {"sig": SIGNED_BY_A}),
    ],
)
def test_this_format_is_narrower_than_dsse(data: bytes) -> None:
    """The specification reads URL-safe base64, several signatures and none that names its key; one encoding has none
    of them."""
    with pytest.raises(MalformedError):
        envelope.parse(data)


def test_the_specification_s_ecdsa_example_signs_our_encoding() -> None:
    """protocol.md, test vectors: "hello world" under P-256; an implementation of the signature that is not ours."""
    public = EllipticCurvePublicNumbers(
        46950820868899156662930047687818585632848591499744589407958293238635476079160,
        5640078356564379163099075877009565129882514886557779369047442380624545832820,
        SECP256R1(),
    ).public_key()
    raw = base64.b64decode("A3JqsQGtVsJ2O2xqrI5IcnXip5GToJ3F+FnZ+O88SjtR6rDAajabZKciJTfUiHqJPcIAriEGAHTVeCUjW2JIZA==")
    signature = encode_dss_signature(int.from_bytes(raw[:32], "big"), int.from_bytes(raw[32:], "big"))
    signed = pre_authentication_encoding("http://example.com/HelloWorld", b"hello world")
    public.verify(signature, signed, ECDSA(SHA256()))
    with pytest.raises(InvalidSignature):
        public.verify(signature, signed + b" ", ECDSA(SHA256()))


def _other_key(key: SigningKey) -> SSlibKey:
    return SSlibKey(key.keyid, "ed25519", "ed25519", {"public": key.public_hex})


def _messages(exchange: Exchange) -> list[tuple[bytes, SigningKey]]:
    """One message of every kind, and who signed it."""
    audience = COLLECTIVE.keyid
    return [
        (exchange.request, INDIVIDUAL),
        (exchange.answer.release, COLLECTIVE),
        (exchange.answer.grant, COLLECTIVE),
        (make_receipt(run_id=RUN, release="0" * 64, audience=audience, key=INDIVIDUAL, now=NOW), INDIVIDUAL),
        (
            make_abort(run_id=RUN, audience=audience, code="stopped", subject=None, key=INDIVIDUAL, now=NOW),
            INDIVIDUAL,
        ),
    ]


def test_securesystemslib_verifies_every_kind_of_message(exchange: Exchange) -> None:
    for data, key in _messages(exchange):
        other = OtherEnvelope.from_dict(json.loads(data))
        opened = envelope.parse(data)
        assert (other.payload_type, other.payload) == (opened.payload_type, opened.payload)
        assert other.pae() == pre_authentication_encoding(opened.payload_type, opened.payload)
        assert set(other.verify([_other_key(key)], 1)) == {key.keyid}
        with pytest.raises(VerificationError):
            other.verify([_other_key(STRANGER)], 1)
        other.payload += b" "
        with pytest.raises(VerificationError):
            other.verify([_other_key(key)], 1)


def test_what_securesystemslib_signs_is_the_same_envelope(exchange: Exchange) -> None:
    """Ed25519 signatures are deterministic, so two implementations that agree make the same bytes."""
    seeds = {COLLECTIVE.keyid: b"c" * 32, INDIVIDUAL.keyid: b"i" * 32}
    for data, key in _messages(exchange):
        opened = envelope.parse(data)
        other = OtherEnvelope(opened.payload, opened.payload_type, {})
        other.sign(CryptoSigner(Ed25519PrivateKey.from_private_bytes(seeds[key.keyid]), _other_key(key)))
        assert canonical_json.encode(other.to_dict()) == data
        # As other software would write it, it is refused before anything in it is read.
        with pytest.raises(MalformedError, match="canonical"):
            envelope.parse(json.dumps(other.to_dict()).encode("ascii"))


# RFC 8032, section 7.1, TEST 3 and TEST SHA(abc): seed, public key, message, signature.
@pytest.mark.parametrize(
    ("seed", "public", "message", "signature"),
    [
        (
            "c5aa8df43f9f837bedb7442f31dcb7b166d38535076f094b85ce3a2e0b4458f7",
            "fc51cd8e6218a1a38da47ed00230f0580816ed13ba3303ac5deb911548908025",
            b"\xaf\x82",
            "6291d657deec24024827e69c3abe01a30ce548a284743a445e3680d7db5ac3ac18ff9b538d16f290ae67f760984dc659"
            "4a7c15e9716ed28dc027beceea1ec40a",
        ),
        (
            "833fe62409237b9d62ec77587520911e9a759cec1d19755b7da901b96dca3d42",
            "ec172b93ad5e563bf4932c70e1245034c35467ef2efd4d64ebf819683467e2bf",
            sha512(b"abc").digest(),
            "dc2a4459e7369633a52b1bf277839a00201009a3efbf3ecb69bea2186c26b58909351fc9ac90b3ecfdfbc7c66431e030"
            "3dca179c138ac17ad9bef1177331a704",
        ),
    ],
)
def test_more_vectors_of_rfc_8032(seed: str, public: str, message: bytes, signature: str) -> None:
    key = SigningKey.from_seed(bytes.fromhex(seed))
    assert key.public_hex == public
    assert key.sign(message).hex() == signature
    check_public_key(bytes.fromhex(public))
    check_signature(bytes.fromhex(public), bytes.fromhex(signature), message)


def test_attack_one_signature_for_every_message() -> None:
    """Why keys of small order are not pinned: under the neutral element, R = A and S = 0 sign whatever is asked."""
    neutral = (1).to_bytes(32, "little")
    for message in (b"one message", b"another message"):
        signing_key.check_signature(neutral, neutral + bytes(32), message)
    with pytest.raises(InputError, match="small order"):
        TRUST.with_key(neutral.hex(), "individual", "individual-3")


@pytest.mark.parametrize("sign", [0, 1])
def test_no_encoding_that_is_not_canonical_is_pinned(sign: int) -> None:
    """All nineteen y from p to 2^255 - 1: each is a second name of a smaller one."""
    TRUST.with_key(STRANGER.public_hex, "individual", "individual-3")
    for y in range(P, 2**255):
        public = (y | sign << 255).to_bytes(32, "little").hex()
        with pytest.raises(InputError, match="not canonically"):
            TRUST.with_key(public, "individual", "individual-3")
