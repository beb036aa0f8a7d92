"""The seeds: valid bytes for every target, made by the project's own code, and the words of the formats."""

from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

from protocol.digest import digest_of
from protocol.encoding import blob
from protocol.exchange.collective_endpoint import Answer
from protocol.keys.signing_key import SigningKey
from protocol.learngene.architecture import MOST_BLOCKS, Architecture, Block
from protocol.learngene.learngene import Learngene
from protocol.messages import bundle_file, envelope
from protocol.messages.builders import make_abort, make_release
from protocol.messages.bundle_file import BundleFile
from protocol.messages.payloads import MOST_WITHDRAWN, AbortCode
from protocol.transport.frame import MAX_WORD_CHARACTERS, Frame, encode_header
from protocol.transport.local_socket import send_frame
from protocol.trust.root_handover import Handover
from protocol.trust.signed_trust import sign_trust
from protocol.trust.trust_store import TrustStore
from tests.fuzz.targets import OLD_ROOT, ROOT, Line
from tests.protocol.parties import (
    COLLECTIVE,
    COLLECTIVE_POLICY,
    ENCRYPTION,
    HYBRID_ENCRYPTION,
    INDIVIDUAL,
    NOW,
    RUN,
    STRANGER,
    Site,
    architecture,
    learngene,
)

_WORDS = rb"""
"payload": "payloadType": "signatures": "keyid": "sig": application/vnd.learngene. .v1+json "pad":"0 "v":1
"dtype":"F32" "data_offsets":[ "shape":[ "__metadata__":{ "numbers":{ "parts":{ "word":" "words":{
"handovers":[ "revoked":[ "keys":[ "withdraws":[ "hpke_kem":" mlkem768-x25519 condensed paper committed superseded
null true false {} [] "" }, ]} ":{" ":[" NaN -1 1.0 1e9 \u0000 \ud800 9007199254740992 9223372036854775808
""".split()


def seeds() -> dict[str, list[bytes]]:
    """Valid inputs by target: every kind of message, blobs with and without a Fisher diagonal, frames, bundle files,
    trust stores."""
    made = (learngene(), learngene(samples=None), learngene(form="paper"))
    keys = (ENCRYPTION, HYBRID_ENCRYPTION, ENCRYPTION)
    envelopes: list[bytes] = []
    bundles: list[BundleFile] = []
    with TemporaryDirectory() as folder:
        here, there = Site(Path(folder) / "collective"), Site(Path(folder) / "individual")
        collective = here.collective()
        for number, (content, key) in enumerate(zip(made, keys, strict=True), 1):
            collective.publish(content, NOW, bytes([number]) * 32)
            individual = there.individual(encryption=key)
            request = individual.request(content.architecture.form, NOW, bytes([number]) * 16, fresh=True)
            answer = collective.answer_request(request, NOW)
            assert isinstance(answer, Answer)
            receipt = individual.inherit(*answer, NOW).receipt
            envelopes += [request, answer.release, answer.grant, receipt]
            bundles.append(BundleFile(*answer))
            # So that the next release says so.
            collective.withdraw(digest_of(answer.release))
        for ledger in (*here.opened, *there.opened):
            ledger.close()
    aborts: list[tuple[AbortCode, str | None]] = [("stopped", None), ("withdrawn", digest_of(bundles[0].release))]
    envelopes += [
        make_abort(run_id=RUN, audience=COLLECTIVE.keyid, code=code, subject=subject, key=INDIVIDUAL, now=NOW)
        for code, subject in aborts
    ]
    store = TrustStore(root=OLD_ROOT.public_hex, expires_at=NOW)
    renewed = store.with_root(Handover.make(OLD_ROOT, ROOT))
    pinned = renewed.with_key(COLLECTIVE.public_hex, "collective", "collective")
    stores = [
        TrustStore(root=ROOT.public_hex, expires_at=NOW),
        renewed,
        pinned,
        pinned.with_rotated_key("collective", "collective", STRANGER.public_hex),
        pinned.with_key(INDIVIDUAL.public_hex, "individual", "individual-1").without_key(INDIVIDUAL.keyid, "retired"),
    ]
    frames = [
        Frame("status"),
        Frame("refused", fields={"code": "malformed"}),
        Frame("status", numbers={"done": 3, "left": -1}, fields={"party": "individual-1", "state": "working"}),
        Frame("inherit", parts=dict(zip(("release", "grant", "blob"), (b"r" * 90, b"g" * 5, b""), strict=True))),
    ]
    return {
        "envelope": envelopes,
        "header": [
            *(blob.encode(content.tensors) for content in made),
            blob.encode_header({"a": (1,)}) + bytes(4),
            blob.encode({kind.__name__: np.ones(2, kind) for kind in (np.float32, np.float16, np.uint16, np.int8)}),
        ],
        "frame": [_sent(frame) for frame in frames],
        "frame-header": [encode_header(frame) for frame in frames],
        "bundle-file": [bundle_file.encode(bundle) for bundle in (*bundles, BundleFile(b"r", b"g", b"b"))],
        "trust": [sign_trust(store, ROOT) for store in stores],
    }


def large_seeds() -> dict[str, list[bytes]]:
    """Valid inputs by target that come near a limit of the format; apart, because they make a run slow."""
    blocks = tuple(Block(role="top", in_channels=1, out_channels=1, pool=False) for _ in range(MOST_BLOCKS))
    deep = Architecture(form="paper", input=architecture().input, blocks=blocks)
    tensors = {name: np.ones(shape, np.float32) for name, (_, shape) in deep.tensors(fisher=True).items()}
    release, ciphertext = make_release(
        Learngene(deep, tensors, learngene().fisher),
        run_id=RUN,
        seq=2,
        prev=digest_of(b"before"),
        key=COLLECTIVE,
        key_epoch=1,
        policy_sha256=COLLECTIVE_POLICY.sha256,
        now=NOW,
        content_key=bytes(32),
        withdraws=tuple(digest_of(bytes([number])) for number in range(MOST_WITHDRAWN)),
    )
    many = {f"tensor{number}": np.ones(1, np.float32) for number in range(blob.MAX_TENSORS)}
    words = {f"word{number}": "w" * MAX_WORD_CHARACTERS for number in range(62)}
    announcing = Frame("publish", dict.fromkeys(words, -(2**63)), dict.fromkeys(words, ""), dict.fromkeys(words, b""))
    store = TrustStore(root=ROOT.public_hex, expires_at=NOW)
    for number in range(40):
        store = store.with_key(SigningKey.from_seed(bytes([number]) * 32).public_hex, "individual", f"party-{number}")
    return {
        "envelope": [release],
        "header": [blob.encode(tensors), blob.encode(many)],
        "frame": [_sent(Frame("status", fields=words)), _sent(announcing)],
        "frame-header": [encode_header(Frame("status", fields=words)), encode_header(announcing)],
        "bundle-file": [bundle_file.encode(BundleFile(release, b"g" * envelope.MAX_BYTES, ciphertext))],
        "trust": [sign_trust(store, ROOT)],
    }


def write(folder: Path) -> None:
    """Write ``folder/TARGET/seeds/NUMBER``, ``folder/TARGET/large/NUMBER`` and ``folder/words.dict``, the dictionary in
    libFuzzer's format."""
    for kind, made in (("seeds", seeds()), ("large", large_seeds())):
        for name, inputs in made.items():
            (folder / name / kind).mkdir(parents=True, exist_ok=True)
            for number, data in enumerate(inputs):
                (folder / name / kind / f"{number:02}").write_bytes(data)
    lines = ("".join(f"\\x{byte:02x}" for byte in word) for word in (*_WORDS, bundle_file.MAGIC))
    (folder / "words.dict").write_text("".join(f'"{line}"\n' for line in lines))


def _sent(frame: Frame) -> bytes:
    line = Line(b"")
    send_frame(line.socket, frame)
    return bytes(line.sent)
