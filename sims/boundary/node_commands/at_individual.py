"""Attacks by commands on an individual: bundles that it must not take, and what it must not show."""

import secrets
import struct
import time
from dataclasses import replace

import numpy as np

from protocol.encoding import blob as blobs
from protocol.encoding.calendar import unix_seconds
from protocol.encoding.canonical_json import Value
from protocol.keys.encryption_key import EncryptionKey
from protocol.messages import envelope
from protocol.messages.builders import make_request
from protocol.transport.frame import Frame
from sims.boundary.attempt import Escaped, Refusal
from sims.boundary.leaks.leak import Honest, opened_blob, released, tensors_of, with_tensor
from sims.boundary.node_commands.target import Scene, Target, against, inheriting, outcome, shown_by

_MONTH = 30 * 24 * 3600
_OTHER_RUN = "f" * 32


@against(
    "individual", "publish to an individual", "the relay orders an individual to publish", "publish", "policy_denied"
)
def publish(target: Target, scene: Scene) -> Refusal | Escaped:
    return shown_by(target, Frame("publish"))


@against(
    "individual",
    "evolve at an individual",
    "the relay orders an individual to train a learngene and to give it away",
    "publish",
    "policy_denied",
)
def evolve(target: Target, scene: Scene) -> Refusal | Escaped:
    return shown_by(target, Frame("evolve"), Frame("publish"))


@against(
    "individual",
    "a command to read a file",
    "a command that no party knows, with the path of an image",
    "read",
    "policy_denied",
)
def read(target: Target, scene: Scene) -> Refusal | Escaped:
    return shown_by(target, Frame("read", fields={"path": target.image}))


@against(
    "individual",
    "adapt before anything is inherited",
    "the order comes in the wrong state; why it fails stays here",
    "adapt",
    "failed",
)
def adapting_first(target: Target, scene: Scene) -> Refusal | Escaped:
    answer = target.ask(Frame("adapt"))
    while answer.fields.get("state") == "working":
        time.sleep(0.05)
        answer = target.ask(Frame("status"))
    return Escaped() if target.shows(answer) else Refusal("adapt", answer.fields["state"])


@against(
    "individual",
    "the text of an error",
    "a command fails, and the error's text names the party's own folder",
    "request",
    "failed",
)
def told_by_failing(target: Target, scene: Scene) -> Refusal | Escaped:
    trust, away = target.folder / "trust.json", target.folder / "away.json"
    trust.rename(away)
    try:
        answer = target.ask(Frame("request", fields={"form": "condensed"}))
    finally:
        away.rename(trust)
    return outcome("request", answer, reached=target.shows(answer, str(target.folder).encode()))


@against(
    "individual",
    "inherit what was never requested",
    "a bundle of the collective answers a request that was never made",
    "inherit",
    "wrong_audience",
)
def never_requested(target: Target, scene: Scene) -> Refusal | Escaped:
    return inheriting(target, scene.forger.bundle(target.request(), in_grant={"request": "0" * 64}))


@against(
    "individual",
    "a bundle of another run",
    "release and grant belong to another run of the same parties",
    "inherit",
    "wrong_run",
)
def of_another_run(target: Target, scene: Scene) -> Refusal | Escaped:
    crossed = {"run_id": _OTHER_RUN}
    return inheriting(target, scene.forger.bundle(target.request(), in_release=crossed, in_grant=crossed))


@against(
    "individual",
    "a bundle from a stranger",
    "release and grant are signed with a key that nobody pinned",
    "inherit",
    "unknown_key",
)
def of_a_stranger(target: Target, scene: Scene) -> Refusal | Escaped:
    return inheriting(target, scene.stranger.bundle(target.request()))


@against(
    "individual",
    "a grant with a forged signature",
    "the signature does not belong to the grant",
    "inherit",
    "bad_signature",
)
def badly_signed(target: Target, scene: Scene) -> Refusal | Escaped:
    bundle = scene.forger.bundle(target.request())
    forged = envelope.encode(replace(envelope.parse(bundle["grant"]), signature=bytes(64)))
    return inheriting(target, bundle | {"grant": forged})


@against(
    "individual",
    "the answer to another individual",
    "the relay swaps the bundles of two individuals",
    "inherit",
    "wrong_audience",
)
def for_another(target: Target, scene: Scene) -> Refusal | Escaped:
    target.request()
    return inheriting(target, scene.forger.bundle(request_of(scene)))


def request_of(scene: Scene) -> bytes:
    """The request of the further individual."""
    return make_request(
        run_id=scene.sites.run_id,
        audience=scene.forger.key.keyid,
        form="condensed",
        key=scene.other,
        encryption=EncryptionKey.generate(),
        now=unix_seconds(),
        nonce=secrets.token_bytes(16),
    )


@against(
    "individual",
    "a grant of another release",
    "the relay joins the grant of one release to another one",
    "inherit",
    "digest_mismatch",
)
def of_another_release(target: Target, scene: Scene) -> Refusal | Escaped:
    request = target.request()
    return inheriting(target, scene.forger.bundle(request) | {"grant": scene.forger.bundle(request)["grant"]})


@against("individual", "an older release", "an older release after a newer one", "inherit", "rollback")
def older_after_newer(target: Target, scene: Scene) -> Refusal | Escaped:
    scene.forger.seq += 2
    unused = scene.forger.seq
    target.ask(Frame("inherit", parts=scene.forger.bundle(target.request())))
    older: dict[str, Value] = {"seq": unused, "prev": f"{unused:064x}"}
    return inheriting(target, scene.forger.bundle(target.request(), in_release=older))


# Answered with the receipt of before: it is taken once.
@against("individual", "the same bundle again", "the relay brings the same bundle twice", "inherit", "receipt")
def again(target: Target, scene: Scene) -> Refusal | Escaped:
    bundle = Frame("inherit", parts=scene.forger.bundle(target.request()))
    first, before = target.ask(bundle), target.inherited()
    second = target.ask(bundle)
    return outcome("inherit", second, reached=target.inherited() != before or second != first)


@against("individual", "an expired release", "a release of last month", "inherit", "expired")
def expired(target: Target, scene: Scene) -> Refusal | Escaped:
    then = unix_seconds() - _MONTH
    long_ago: dict[str, Value] = {"issued_at": then, "expires_at": then + 3600}
    return inheriting(target, scene.forger.bundle(target.request(), in_release=long_ago))


@against(
    "individual",
    "a release of next month",
    "a release that is dated ahead, so that it would hold for longer",
    "inherit",
    "expired",
)
def from_the_future(target: Target, scene: Scene) -> Refusal | Escaped:
    then = unix_seconds() + _MONTH
    ahead: dict[str, Value] = {"issued_at": then, "expires_at": then + 3600}
    return inheriting(target, scene.forger.bundle(target.request(), in_release=ahead))


@against(
    "individual",
    "a blob with a bit turned over",
    "the relay changes one bit of the blob",
    "inherit",
    "digest_mismatch",
)
def with_a_flipped_bit(target: Target, scene: Scene) -> Refusal | Escaped:
    bundle = scene.forger.bundle(target.request())
    blob = bundle["blob"]
    return inheriting(target, bundle | {"blob": blob[:-1] + bytes([blob[-1] ^ 1])})


@against(
    "individual",
    "a bundle without its blob",
    "the relay keeps the learngene back, and brings what vouches for it",
    "inherit",
    "malformed",
)
def without_blob(target: Target, scene: Scene) -> Refusal | Escaped:
    bundle = scene.forger.bundle(target.request())
    return inheriting(target, {name: data for name, data in bundle.items() if name != "blob"})


@against(
    "individual",
    "a release with a further field",
    "the collective signs a release with free text in it",
    "inherit",
    "malformed",
)
def with_a_note(target: Target, scene: Scene) -> Refusal | Escaped:
    return inheriting(target, scene.forger.bundle(target.request(), in_release={"note": "hello"}))


@against(
    "individual",
    "a learngene with a classifier",
    "the collective signs a tensor that the architecture does not have",
    "inherit",
    "policy_denied",
)
def with_a_classifier(target: Target, scene: Scene) -> Refusal | Escaped:
    def make(honest: Honest) -> Frame:
        return with_tensor(honest, "classifier.2.weight", "float32", bytes(64))

    return inheriting(target, scene.forger.bundle(target.request(), make))


@against("individual", "a learngene of bytes", "the collective signs a tensor of another type", "inherit", "malformed")
def of_bytes(target: Target, scene: Scene) -> Refusal | Escaped:
    def make(honest: Honest) -> Frame:
        return with_tensor(honest, "block.9.images", "uint8", bytes(64))

    return inheriting(target, scene.forger.bundle(target.request(), make))


@against(
    "individual",
    "a learngene with an oversized name",
    "the collective signs a tensor whose name has thousands of characters",
    "inherit",
    "malformed",
)
def with_a_long_name(target: Target, scene: Scene) -> Refusal | Escaped:
    def make(honest: Honest) -> Frame:
        return with_tensor(honest, "a" * 4000, "float32", bytes(64))

    return inheriting(target, scene.forger.bundle(target.request(), make))


@against(
    "individual",
    "a learngene of NaN",
    "the collective signs weights that are NaN with a payload",
    "inherit",
    "non_finite",
)
def of_nan(target: Target, scene: Scene) -> Refusal | Escaped:
    def make(honest: Honest) -> Frame:
        tensors = tensors_of(honest)
        tensors["block.1.conv.weight"].reshape(-1)[:16] = np.frombuffer(b"\x41\x42\xc0\x7f" * 16, "<f4")
        return released(honest, blobs.encode(tensors))

    return inheriting(target, scene.forger.bundle(target.request(), make))


@against(
    "individual",
    "a learngene with metadata",
    "the collective signs a blob whose header has a place for free text",
    "inherit",
    "malformed",
)
def with_metadata(target: Target, scene: Scene) -> Refusal | Escaped:
    def make(honest: Honest) -> Frame:
        plaintext = opened_blob(Frame("bundle", parts=honest.parts))
        size = struct.unpack("<Q", plaintext[:8])[0]
        header = b'{"__metadata__":{"format":"pt"},' + plaintext[9 : 8 + size]
        return released(honest, struct.pack("<Q", len(header)) + header + plaintext[8 + size :])

    return inheriting(target, scene.forger.bundle(target.request(), make))


@against(
    "individual",
    "a learngene with a Fisher diagonal of few images",
    "the collective signs a diagonal from 128 images",
    "inherit",
    "policy_denied",
)
def with_few_samples(target: Target, scene: Scene) -> Refusal | Escaped:
    few: Value = {"clip_micro": 0, "estimator": "sampled", "samples": 128, "source": "collective"}
    return inheriting(target, scene.forger.bundle(target.request(), in_release={"fisher": few}))
