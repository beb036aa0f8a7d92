"""Files that format version 1 made once: they verify and open for ever, to the tensors that went in."""

from collections.abc import Callable, Mapping
from typing import get_args

import numpy as np
import pytest

from protocol.digest import digest_of
from protocol.encoding.blob import Dtype
from protocol.errors import ExpiredError, RefusedError, RevokedKeyError, UnknownKeyError, WrongAudienceError
from protocol.exchange.expectation import Expectation, Holder
from protocol.exchange.verification import (
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
from protocol.keys.kem import Kem
from protocol.learngene.architecture import Norm, SizeWeights
from protocol.learngene.learngene import Learngene, PrivacyScope
from protocol.messages import bundle_file
from protocol.messages.bundle_file import BundleFile
from protocol.messages.payloads import LIFE, NO_RELEASE, SKEW
from protocol.trust.policy import Policy
from protocol.trust.signed_trust import verify_trust
from protocol.trust.trust_store import TrustStore
from tests.protocol.golden import make
from tests.protocol.golden.make import BUNDLES, COLLECTIVE, FIRST_ROOT, FOLDER, FORMER_COLLECTIVE, NOW, ROOT, RUN
from tests.protocol.parties import STRANGER

POLICY = Policy.for_role("individual")
KEPT = dict(line.split("  ")[::-1] for line in make.SUMS.read_text().splitlines())
NAMES = tuple(name for name in BUNDLES if f"{name}.learngene" in KEPT)
EACH = pytest.mark.parametrize("name", NAMES)
#: Every file as this version of the software would make it: also those that are not kept yet.
MADE = make.files()


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
    audience = BUNDLES[name].key.keyid
    return verify_abort(data, trust=TRUST, role="collective", run_id=RUN, audience=audience, now=NOW)


def bundle_of(name: str, data: bytes, now: int = NOW, trust: TrustStore = TRUST) -> VerifiedLearngene:
    holder = Holder(run_id=RUN, audience=BUNDLES[name].key.keyid)
    sealed = verify_file(*bundle_file.decode(data), holder=holder, trust=trust, policy=POLICY, now=now)
    return open_sealed(sealed, BUNDLES[name].encryption)


def assert_known(name: str, found: Learngene) -> None:
    known = BUNDLES[name].learngene
    assert found.architecture == known.architecture
    assert found.fisher == known.fisher
    assert found.privacy == known.privacy
    assert list(found.tensors) == sorted(known.tensors)
    for tensor, array in known.tensors.items():
        np.testing.assert_array_equal(found.tensors[tensor], array, strict=True)


def test_the_files_are_the_ones_that_were_made() -> None:
    here = {path.name for path in FOLDER.iterdir() if path.suffix in (".json", ".learngene")}
    assert here == set(KEPT)
    assert here == set(MADE)
    for name, digest in KEPT.items():
        assert digest_of(golden(name)) == digest, name


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
    key, encryption, form = BUNDLES[name].key, BUNDLES[name].encryption, BUNDLES[name].form
    request = golden(f"{name}.request.json")
    verified = verify_bundle(
        *bundle_file.decode(golden(f"{name}.learngene")),
        expectation=Expectation(RUN, key.keyid, {digest_of(request): form}),
        seen=(),
        trust=TRUST,
        policy=POLICY,
        key=encryption,
        now=NOW,
    )
    assert_known(name, verified.learngene)


def test_a_bundle_opens_for_its_own_audience_only() -> None:
    assert len({BUNDLES[name].individual for name in NAMES}) == 2
    for name in NAMES:
        sealed = bundle_of(name, golden(f"{name}.learngene")).sealed
        with pytest.raises(WrongAudienceError):
            open_sealed(sealed, make.INDIVIDUALS[1 - BUNDLES[name].individual][1])


def test_the_releases_are_one_chain_and_each_withdraws_the_one_before() -> None:
    prev, withdraws = NO_RELEASE, ()
    for seq, name in enumerate(NAMES, start=1):
        verified = bundle_of(name, golden(f"{name}.learngene"))
        assert (verified.release.seq, verified.release.prev) == (seq, prev)
        assert verified.release.withdraws == withdraws
        prev, withdraws = verified.release_digest, (verified.release_digest,)


def assert_small_messages(name: str, files: Mapping[str, bytes], release: str) -> None:
    key, encryption, form = BUNDLES[name].key, BUNDLES[name].encryption, BUNDLES[name].form
    request = request_of(files[f"{name}.request.json"])
    assert (request.payload.form, request.payload.signer) == (form, key.keyid)
    assert (request.payload.hpke_kem, request.payload.hpke_public) == (encryption.kem, encryption.public.hex())
    receipt = receipt_of(files[f"{name}.receipt.json"])
    assert (receipt.payload.release, receipt.payload.status) == (release, "committed")
    abort = abort_of(name, files[f"{name}.abort.json"])
    assert (abort.payload.code, abort.payload.subject) == ("withdrawn", release)


@EACH
def test_the_small_messages_verify(name: str) -> None:
    release = bundle_of(name, golden(f"{name}.learngene")).release_digest
    assert_small_messages(name, {file: golden(file) for file in KEPT}, release)


@pytest.mark.parametrize("name", BUNDLES)
def test_what_would_be_made_now_verifies_and_opens(name: str) -> None:
    """Before it is kept for ever."""
    made = bundle_of(name, MADE[f"{name}.learngene"])
    assert_known(name, made.learngene)
    assert_small_messages(name, MADE, made.release_digest)


def test_the_bundles_say_all_that_a_release_can_say() -> None:
    """Each kind of normalisation, privacy, key, dtype and sizes, with and without a Fisher diagonal, and more than one
    form."""
    found = [bundle_of(name, MADE[f"{name}.learngene"]).release for name in BUNDLES]
    assert {block.norm for release in found for block in release.architecture.blocks} == set(get_args(Norm))
    assert {release.dp.scope if release.dp else None for release in found} == {None, *get_args(PrivacyScope)}
    assert {release.fisher is None for release in found} == {True, False}
    assert {bundle.encryption.kem for bundle in BUNDLES.values()} == set(get_args(Kem))
    assert {release.architecture.dtype for release in found} == set(get_args(Dtype))
    sized = [release.architecture for release in found if release.architecture.sizes]
    assert {architecture.size_weights for architecture in sized} == set(get_args(SizeWeights))
    assert {"condensed", "direct", "paper", "paper-middle"} <= {release.form for release in found}


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
