"""Envelopes: the DSSE specification's own vector, and one envelope for one signed payload."""

import base64
import json
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocol.errors import BadSignatureError, LearngeneError, MalformedError, TooLargeError
from protocol.messages import envelope
from protocol.messages.builders import make_request, sign
from protocol.messages.payloads import Request, decode
from tests.protocol.parties import COLLECTIVE, ENCRYPTION, INDIVIDUAL, NOW, RUN, STRANGER

REQUEST = make_request(
    run_id=RUN,
    audience=COLLECTIVE.keyid,
    form="condensed",
    key=INDIVIDUAL,
    encryption=ENCRYPTION,
    now=NOW,
    nonce=bytes(16),
)
PUBLIC = bytes.fromhex(INDIVIDUAL.public_hex)


def test_pre_authentication_encoding_of_the_specification() -> None:
    """secure-systems-lab/dsse, protocol.md, test vectors."""
    encoded = envelope.pre_authentication_encoding("http://example.com/HelloWorld", b"hello world")
    assert encoded == b"DSSEv1 29 http://example.com/HelloWorld 11 hello world"


def test_lengths_count_bytes_and_not_characters() -> None:
    assert envelope.pre_authentication_encoding("ä", b"\xff\x00") == b"DSSEv1 2 \xc3\xa4 2 \xff\x00"
    assert envelope.pre_authentication_encoding("", b"") == b"DSSEv1 0  0 "


@given(st.text(max_size=8), st.binary(max_size=8), st.text(max_size=8), st.binary(max_size=8))
def test_two_messages_never_share_an_encoding(kind: str, body: bytes, other_kind: str, other_body: bytes) -> None:
    same = envelope.pre_authentication_encoding(kind, body) == envelope.pre_authentication_encoding(
        other_kind, other_body
    )
    assert same == ((kind, body) == (other_kind, other_body))


def test_seal_and_parse() -> None:
    opened = envelope.parse(REQUEST)
    assert opened.payload_type == "application/vnd.learngene.request.v1+json"
    assert opened.keyid == INDIVIDUAL.keyid
    assert decode(Request, opened.payload).nonce == "00" * 16
    assert envelope.encode(opened) == REQUEST
    envelope.check_signature(opened, PUBLIC)


def test_any_dsse_reader_understands_it() -> None:
    """The specification's envelope.md: payload, payloadType, signatures[keyid, sig], standard base64."""
    value = json.loads(REQUEST)
    assert set(value) == {"payload", "payloadType", "signatures"}
    (signature,) = value["signatures"]
    body = base64.b64decode(value["payload"])
    signed = b"DSSEv1 %d %b %d %b" % (len(value["payloadType"]), value["payloadType"].encode(), len(body), body)
    assert INDIVIDUAL.sign(signed) == base64.b64decode(signature["sig"])


def test_another_key_or_type_or_payload_has_another_signature() -> None:
    opened = envelope.parse(REQUEST)
    with pytest.raises(BadSignatureError):
        envelope.check_signature(opened, bytes.fromhex(STRANGER.public_hex))
    for changed in (
        envelope.Envelope(
            opened.payload_type.replace("request", "receipt"), opened.payload, opened.keyid, opened.signature
        ),
        envelope.Envelope(opened.payload_type, opened.payload + b" ", opened.keyid, opened.signature),
    ):
        with pytest.raises(BadSignatureError):
            envelope.check_signature(changed, PUBLIC)


def test_a_key_signs_only_in_its_own_name() -> None:
    payload = decode(Request, envelope.parse(REQUEST).payload)
    with pytest.raises(ValueError, match="another signer"):
        sign(payload, STRANGER)


def changed(change: Callable[[dict[str, object]], object]) -> bytes:
    value = json.loads(REQUEST)
    change(value)
    return json.dumps(value, sort_keys=True, separators=(",", ":")).encode()


def second_signature(value: dict[str, object]) -> None:
    signatures = value["signatures"]
    assert isinstance(signatures, list)
    signatures.append(signatures[0])


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"{}",
        json.dumps(json.loads(REQUEST)).encode(),
        REQUEST + b"\n",
        REQUEST[:-1],
        changed(lambda value: value.update(signatures=[])),
        changed(second_signature),
        changed(lambda value: value.update(note=1)),
        changed(lambda value: value.pop("payloadType")),
        changed(lambda value: value["signatures"][0].update(note=1)),  # type: ignore[index]
        changed(lambda value: value["signatures"][0].pop("keyid")),  # type: ignore[index]
        changed(lambda value: value["signatures"][0].update(sig="AAAA")),  # type: ignore[index]
        changed(lambda value: value.update(payload="e30")),
        changed(lambda value: value.update(payload="e31=")),
        changed(lambda value: value.update(payload="e3 0=")),
        changed(lambda value: value.update(payload=value["payload"].replace("e", "-"))),  # type: ignore[attr-defined]
        changed(lambda value: value.update(payload=1)),
    ],
)
def test_malformed(data: bytes) -> None:
    assert changed(lambda value: None) == REQUEST
    with pytest.raises(MalformedError):
        envelope.parse(data)


def test_too_large() -> None:
    with pytest.raises(TooLargeError):
        envelope.parse(changed(lambda value: value.update(payload="A" * envelope.MAX_BYTES)))


def test_no_flipped_bit_of_an_envelope_passes() -> None:
    """Every bit: parse and signature together accept no other bytes than those that were signed, key id apart."""
    for position in range(8 * len(REQUEST)):
        data = bytearray(REQUEST)
        data[position // 8] ^= 1 << position % 8
        try:
            opened = envelope.parse(bytes(data))
            assert opened.keyid == INDIVIDUAL.keyid or opened.keyid not in (INDIVIDUAL.keyid, COLLECTIVE.keyid)
            if opened.keyid == INDIVIDUAL.keyid:
                envelope.check_signature(opened, PUBLIC)
        except LearngeneError:
            continue
        # The key id is not signed: it only chooses the pinned key, and an altered one chooses none.
        assert opened.keyid != INDIVIDUAL.keyid
