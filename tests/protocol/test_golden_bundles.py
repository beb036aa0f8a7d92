"""Files that format version 1 made once: they verify and open for ever, to the tensors that went in."""

from collections.abc import Callable

import numpy as np
import pytest

from protocol import bundle_file, envelope
from protocol.bundle_file import BundleFile
from protocol.errors import ExpiredError, RefusedError, RevokedKeyError, UnknownKeyError, WrongAudienceError
from protocol.learngene import Learngene
from protocol.messages import LIFE, NO_RELEASE, SKEW
from protocol.policy import Policy
from protocol.trust import TrustStore, verify_trust
from protocol.verification import (
    Expectation,
    Holder,
    VerifiedAbort,
    VerifiedLearngene,
    VerifiedReceipt,
    VerifiedRequest,
    open_sealed,
    verify_abort,
    verify_bundle,
    verify_file,
    verify_receipt,
    verify_request,
)
from tests.protocol.golden import make
from tests.protocol.golden.make import COLLECTIVE, FIRST_ROOT, FOLDER, FORMER_COLLECTIVE, INDIVIDUALS, NOW, ROOT, RUN
from tests.protocol.parties import STRANGER

POLICY = Policy.for_role("individual")
NAMES = tuple(INDIVIDUALS)
EACH = pytest.mark.parametrize("name", NAMES)


def golden(name: str) -> bytes:
    return (FOLDER / name).read_bytes()


def trust_of(data: bytes) -> TrustStore:
    return verify_trust(data, root=FIRST_ROOT.public_hex, seen=None)[0]


TRUST = trust_of(golden("trust.json"))


def request_of(data: bytes) -> VerifiedRequest:
    return verify_request(
        data, trust=TRUST, run_id=RUN, audience=COLLECTIVE.keyid, known=lambda keyid, nonce: None, now=NOW
    )


def receipt_of(data: bytes) -> VerifiedReceipt:
    return verify_receipt(data, trust=TRUST, run_id=RUN, audience=COLLECTIVE.keyid, now=NOW)


def abort_of(name: str, data: bytes) -> VerifiedAbort:
    audience = INDIVIDUALS[name][0].keyid
    return verify_abort(data, trust=TRUST, role="collective", run_id=RUN, audience=audience, now=NOW)


def bundle_of(name: str, data: bytes, now: int = NOW, trust: TrustStore = TRUST) -> VerifiedLearngene:
    key, encryption, _ = INDIVIDUALS[name]
    holder = Holder(run_id=RUN, audience=key.keyid)
    sealed = verify_file(*bundle_file.decode(data), holder=holder, trust=trust, policy=POLICY, now=now)
    return open_sealed(sealed, encryption)


def assert_known(name: str, found: Learngene) -> None:
    known = make.learngene(INDIVIDUALS[name][2])
    assert found.architecture == known.architecture
    assert found.fisher == known.fisher
    assert list(found.tensors) == sorted(known.tensors)
    for tensor, array in known.tensors.items():
        np.testing.assert_array_equal(found.tensors[tensor], array, strict=True)


def test_the_files_are_the_ones_that_were_made() -> None:
    listed = dict(line.split("  ")[::-1] for line in make.SUMS.read_text().splitlines())
    here = {path.name for path in FOLDER.iterdir() if path.suffix in (".json", ".learngene")}
    assert here == set(listed) == set(make.files())
    for name, digest in listed.items():
        assert envelope.digest(golden(name)) == digest, name


def test_the_trust_store_verifies_under_every_root_that_led_to_it() -> None:
    for root in (FIRST_ROOT, ROOT):
        store, seen = verify_trust(golden("trust.json"), root=root.public_hex, seen=None)
        assert store == make.trust()
        assert (seen.version, seen.root) == (store.version, ROOT.public_hex)
        assert verify_trust(golden("trust.json"), root=root.public_hex, seen=seen) == (store, seen)
    with pytest.raises(UnknownKeyError):
        verify_trust(golden("trust.json"), root=STRANGER.public_hex, seen=None)
    assert TRUST.key_for(COLLECTIVE.keyid, "collective").epoch == 2
    with pytest.raises(RevokedKeyError, match="superseded"):
        TRUST.key_for(FORMER_COLLECTIVE.keyid, "collective")
    TRUST.check_current(NOW)
    with pytest.raises(ExpiredError):
        TRUST.check_current(TRUST.expires_at + 1)


@EACH
def test_a_bundle_out_of_its_file_verifies_and_opens(name: str) -> None:
    data = golden(f"{name}.learngene")
    verified = bundle_of(name, data)
    assert_known(name, verified.learngene)
    assert bundle_file.encode(BundleFile(*bundle_file.decode(data))) == data
    assert verified.release.v == 1
    assert verified.release.key_epoch == 2
    # To the last second of its life, and no longer.
    bundle_of(name, data, now=NOW + LIFE + SKEW)
    with pytest.raises(ExpiredError):
        bundle_of(name, data, now=NOW + LIFE + SKEW + 1)
    with pytest.raises(RevokedKeyError):
        bundle_of(name, data, trust=TRUST.without_key(COLLECTIVE.keyid, "compromised"))


@EACH
def test_a_bundle_answers_its_request(name: str) -> None:
    key, encryption, form = INDIVIDUALS[name]
    request = golden(f"{name}.request.json")
    verified = verify_bundle(
        *bundle_file.decode(golden(f"{name}.learngene")),
        expectation=Expectation(RUN, key.keyid, {envelope.digest(request): form}),
        seen=(),
        trust=TRUST,
        policy=POLICY,
        key=encryption,
        now=NOW,
    )
    assert_known(name, verified.learngene)


def test_a_bundle_opens_for_its_own_audience_only() -> None:
    for name, other in (NAMES, NAMES[::-1]):
        sealed = bundle_of(name, golden(f"{name}.learngene")).sealed
        with pytest.raises(WrongAudienceError):
            open_sealed(sealed, INDIVIDUALS[other][1])


def test_the_two_releases_are_one_chain_and_the_second_withdraws_the_first() -> None:
    first, second = (bundle_of(name, golden(f"{name}.learngene")) for name in NAMES)
    assert (first.release.seq, first.release.prev, first.release.withdraws) == (1, NO_RELEASE, ())
    assert (second.release.seq, second.release.prev) == (2, first.release_digest)
    assert second.release.withdraws == (first.release_digest,)


@EACH
def test_the_small_messages_verify(name: str) -> None:
    key, encryption, form = INDIVIDUALS[name]
    release = bundle_of(name, golden(f"{name}.learngene")).release_digest
    request = request_of(golden(f"{name}.request.json"))
    assert (request.payload.form, request.payload.signer) == (form, key.keyid)
    assert (request.payload.hpke_kem, request.payload.hpke_public) == (encryption.kem, encryption.public.hex())
    receipt = receipt_of(golden(f"{name}.receipt.json"))
    assert (receipt.payload.release, receipt.payload.status) == (release, "committed")
    abort = abort_of(name, golden(f"{name}.abort.json"))
    assert (abort.payload.code, abort.payload.subject) == ("withdrawn", release)


READERS: dict[str, Callable[[bytes], object]] = {"trust.json": trust_of}
for _name in NAMES:
    READERS |= {
        f"{_name}.learngene": lambda data, name=_name: bundle_of(name, data),
        f"{_name}.request.json": request_of,
        f"{_name}.receipt.json": receipt_of,
        f"{_name}.abort.json": lambda data, name=_name: abort_of(name, data),
    }


@pytest.mark.parametrize("file", READERS)
def test_one_changed_byte_is_refused(file: str) -> None:
    """The first byte, the last one, and three hundred in between; each changed to any other value."""
    data = golden(file)
    READERS[file](data)
    rng = np.random.default_rng(4)
    for position in (0, len(data) - 1, *map(int, rng.integers(len(data), size=300))):
        changed = bytearray(data)
        changed[position] ^= int(rng.integers(1, 256))
        with pytest.raises(RefusedError):
            READERS[file](bytes(changed))
    READERS[file](data)
