"""How the golden files beside this one were made, and what is in them.

    python -m tests.protocol.golden.make

They were made once: HPKE draws a fresh key whenever it seals, so that no second making has the same bytes, and a format
is kept by reading old files, not by writing them anew. It writes what is not there yet, and changes nothing.
"""

import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from protocol.digest import digest_of
from protocol.encoding.blob import Dtype
from protocol.keys.encryption_key import EncryptionKey
from protocol.keys.signing_key import SigningKey
from protocol.learngene.architecture import (
    Architecture,
    Block,
    BlockRole,
    Form,
    InputContract,
    Norm,
    SizeName,
    SizeWeights,
)
from protocol.learngene.learngene import DifferentialPrivacy, FisherDescription, Learngene
from protocol.messages import bundle_file, envelope
from protocol.messages.builders import make_abort, make_grant, make_receipt, make_release, make_request
from protocol.messages.bundle_file import BundleFile
from protocol.messages.payloads import NO_RELEASE, Release, Request, decode
from protocol.trust.policy import Policy
from protocol.trust.root_handover import Handover
from protocol.trust.signed_trust import sign_trust
from protocol.trust.trust_store import TrustStore

FOLDER = Path(__file__).parent
SUMS = FOLDER / "SHA256SUMS"

NOW = 1_800_000_000
RUN = "00112233445566778899aabbccddeeff"
FIRST_ROOT = SigningKey.from_seed(b"golden root of the first year 01")
ROOT = SigningKey.from_seed(b"golden root of the second year 2")
FORMER_COLLECTIVE = SigningKey.from_seed(b"golden collective, former key  1")
COLLECTIVE = SigningKey.from_seed(b"golden collective, present key 2")
INDIVIDUALS: tuple[tuple[SigningKey, EncryptionKey], ...] = (
    (
        SigningKey.from_seed(b"golden individual number one   1"),
        EncryptionKey.from_raw("x25519", b"golden encryption key, x25519  1"),
    ),
    (
        SigningKey.from_seed(b"golden individual number two   2"),
        EncryptionKey.from_raw("mlkem768-x25519", b"golden encryption key, hybrid  2" * 3),
    ),
)


@dataclass(frozen=True)
class Bundle:
    """Who asked for a golden bundle (a number in ``INDIVIDUALS``), and what is in it."""

    individual: int
    form: Form
    norm: Norm = "batch"
    fisher: FisherDescription | None = None
    privacy: DifferentialPrivacy | None = None
    dtype: Dtype = "float32"
    sizes: tuple[SizeName, ...] = ()
    size_weights: SizeWeights = "nested"

    @property
    def key(self) -> SigningKey:
        """Whoever asked."""
        return INDIVIDUALS[self.individual][0]

    @property
    def encryption(self) -> EncryptionKey:
        """What opens it."""
        return INDIVIDUALS[self.individual][1]

    @property
    def learngene(self) -> Learngene:
        """Its content."""
        architecture = _architecture(self.form, self.norm).model_copy(
            update={"dtype": self.dtype, "sizes": self.sizes, "size_weights": self.size_weights}
        )
        return Learngene(architecture, _tensors(architecture, self.fisher is not None), self.fisher, self.privacy)


#: By name, in the order of the chain of releases.
BUNDLES: dict[str, Bundle] = {
    "x25519": Bundle(
        0,
        "condensed",
        fisher=FisherDescription(source="collective", estimator="sampled", samples=1024, clip_micro=0),
    ),
    "mlkem768-x25519": Bundle(1, "paper"),
    "private-group-norm": Bundle(
        0,
        "condensed",
        norm="group",
        fisher=FisherDescription(source="collective", estimator="empirical", samples=4096, clip_micro=250_000),
        privacy=DifferentialPrivacy(
            epsilon_micro=8_000_000, delta_exponent=5, relation="add-or-remove", scope="weights-and-fisher"
        ),
    ),
    "paper-middle": Bundle(
        1,
        "paper-middle",
        fisher=FisherDescription(source="collective", estimator="empirical", samples=2048, clip_micro=1),
        privacy=DifferentialPrivacy(
            epsilon_micro=1, delta_exponent=30, relation="replace", scope="fisher-given-weights"
        ),
    ),
    "nested-int8": Bundle(
        0,
        "condensed",
        fisher=FisherDescription(source="collective", estimator="sampled", samples=1024, clip_micro=0),
        dtype="int8",
        sizes=("x0.5",),
    ),
    "own-bfloat16": Bundle(
        1,
        "direct",
        fisher=FisherDescription(source="collective", estimator="exact", samples=1024, clip_micro=0),
        dtype="bfloat16",
        sizes=("x0.5",),
        size_weights="own",
    ),
    "float16": Bundle(0, "paper", dtype="float16"),
}


def _architecture(form: Form, norm: Norm) -> Architecture:
    """A stem and a top block; a paper's form, but not ``condensed`` and ``direct``, has the second one alone."""
    second: BlockRole = "middle" if form == "paper-middle" else "top"
    blocks = (
        Block(role="stem", in_channels=3, out_channels=2, pool=True, norm=norm),
        Block(role=second, in_channels=2, out_channels=3, pool=False, norm=norm),
    )
    return Architecture(
        form=form,
        input=InputContract(height=8, width=8, channels=3),
        blocks=blocks if form in ("condensed", "direct") else blocks[1:],
    )


def _tensors(architecture: Architecture, fisher: bool) -> dict[str, NDArray[np.float32]]:
    """Sixty-fourths, which every dtype holds exactly; no two tensors begin alike. Each channel of 8-bit weights has the
    largest of these, 127."""
    made = {
        name: ((np.arange(np.prod(shape)) + 5 * number) % 61 + 1).astype(np.float32).reshape(shape) / np.float32(64)
        for number, (name, (_, shape)) in enumerate(architecture.tensors(fisher=fisher).items())
    }
    for name, kind in architecture.stored(fisher=fisher).items():
        if kind.dtype == "int8":
            made[name][:, 0, 0, 0] = -127 / 64
    return made


def trust() -> TrustStore:
    """A trust store with some history: a new root, a collective with its second key, an individual that has left."""
    gone = SigningKey.from_seed(b"golden individual that has left ")
    store = (
        TrustStore(root=FIRST_ROOT.public_hex, expires_at=NOW + 365 * 24 * 3600)
        .with_key(FORMER_COLLECTIVE.public_hex, "collective", "collective")
        .with_key(gone.public_hex, "individual", "individual-0")
        .with_rotated_key("collective", "collective", COLLECTIVE.public_hex)
        .without_key(gone.keyid, "retired")
    )
    for number, (key, _) in enumerate(INDIVIDUALS, start=1):
        store = store.with_key(key.public_hex, "individual", f"individual-{number}")
    return store.with_root(Handover.make(FIRST_ROOT, ROOT))


def files() -> dict[str, bytes]:
    """The content of every golden file by its name."""
    made = {"trust.json": sign_trust(trust(), ROOT)}
    prev, withdraws = NO_RELEASE, ()
    for seq, (name, bundle) in enumerate(BUNDLES.items(), start=1):
        content_key, key = bytes([seq]) * 32, bundle.key
        request = make_request(
            run_id=RUN,
            audience=COLLECTIVE.keyid,
            form=bundle.form,
            key=key,
            encryption=bundle.encryption,
            now=NOW,
            nonce=bytes([seq]) * 16,
        )
        release, ciphertext = make_release(
            bundle.learngene,
            run_id=RUN,
            seq=seq,
            prev=prev,
            key=COLLECTIVE,
            key_epoch=2,
            policy_sha256=Policy.for_role("collective").sha256,
            now=NOW,
            content_key=content_key,
            withdraws=withdraws,
        )
        digest = digest_of(release)
        grant = make_grant(
            decode(Request, envelope.parse(request).payload),
            digest_of(request),
            decode(Release, envelope.parse(release).payload),
            digest,
            key=COLLECTIVE,
            now=NOW,
            content_key=content_key,
        )
        made |= {
            f"{name}.learngene": bundle_file.encode(BundleFile(release, grant, ciphertext)),
            f"{name}.request.json": request,
            f"{name}.receipt.json": make_receipt(
                run_id=RUN, release=digest, audience=COLLECTIVE.keyid, key=key, now=NOW
            ),
            f"{name}.abort.json": make_abort(
                run_id=RUN, audience=key.keyid, code="withdrawn", subject=digest, key=COLLECTIVE, now=NOW
            ),
        }
        prev = _kept(name) or digest  # what is made now says other things, such as the digest of today's policy
        withdraws = (prev,)
    return made


def _kept(name: str) -> str | None:
    """The digest of the release that is kept; None if none is."""
    path = FOLDER / f"{name}.learngene"
    return digest_of(bundle_file.decode(path.read_bytes()).release) if path.exists() else None


def main() -> None:
    """Write the files that are not there yet, and their digests."""
    kept = SUMS.read_text().splitlines() if SUMS.exists() else []
    made = {name: data for name, data in files().items() if not (FOLDER / name).exists()}
    if not made:
        sys.exit(f"{FOLDER} holds all golden files already; they are made once")
    for name, data in made.items():
        (FOLDER / name).write_bytes(data)
    lines = [*kept, *(f"{digest_of(data)}  {name}" for name, data in made.items())]
    SUMS.write_text("".join(f"{line}\n" for line in sorted(lines, key=lambda line: line.split("  ")[1])))


if __name__ == "__main__":
    main()
