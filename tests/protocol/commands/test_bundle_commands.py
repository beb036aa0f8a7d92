"""``learngene inspect`` and ``learngene verify``: what a file says, what of it is proven, and what is refused."""

import base64
import functools
import json
import os
import re
import socket
import time
from collections.abc import Callable
from pathlib import Path
from typing import get_args

import pytest

from protocol.commands import inspection
from protocol.commands.learngene import make
from protocol.digest import digest_of
from protocol.encoding import canonical_json
from protocol.exchange.individual_endpoint import IndividualEndpoint
from protocol.exchange.verification import VerifiedLearngene
from protocol.keys.kem import Kem
from protocol.keys.signing_key import fingerprint
from protocol.learngene.learngene import DifferentialPrivacy
from protocol.messages import bundle_file, envelope, payloads
from protocol.messages.bundle_file import BundleFile
from protocol.messages.payloads import LIFE, PAYLOAD_TYPES, SKEW, Release
from protocol.trust.trust_file import read_trust, write_trust
from protocol.trust.trust_store import TrustStore
from tests.protocol.parties import COLLECTIVE, ROOT, STRANGER, architecture, learngene, opened, resigned, signed_raw
from tests.two_folders import Done, Folders, make_folders, refused, run, succeeded, warned

Learngene = Callable[..., Done]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Folders:
    """Three nodes; the collective has published one learngene, and the first individual inherited it."""
    made = make_folders(tmp_path_factory.mktemp("nodes"))
    made.publish()
    made.exchange(made.folder / "condensed.learngene")
    return made


@pytest.fixture
def bundle(folders: Folders) -> Path:
    return folders.folder / "condensed.learngene"


@pytest.fixture
def command() -> Learngene:
    """Runs a command of ``learngene``."""
    return functools.partial(run, make())


def results(printed: str) -> dict[str, str]:
    """What ``verify`` says of every step."""
    found = {}
    for line in printed.splitlines():
        step = re.match(r" +([a-z ]+?) {2,}(verified|NOT VERIFIED|BELIEVED|WITHDRAWN) ", line)
        if step:
            found[step[1]] = step[2]
    return found


WITHOUT_LEDGER = {"chain": "NOT VERIFIED", "withdrawal": "NOT VERIFIED", "newest": "NOT VERIFIED"}
ALWAYS = dict.fromkeys(("signatures", "agreement", "audience", "time", "policy", "ciphertext"), "verified")


def test_inspect_shows_what_a_bundle_says_and_that_nothing_is_proven(
    folders: Folders, bundle: Path, command: Learngene
) -> None:
    printed = succeeded(command("inspect", bundle))
    assert printed.startswith("NOT VERIFIED")
    parts = bundle_file.read(bundle)
    release = opened(Release, parts.release)
    words = " ".join(printed.split())
    for expected in (
        digest_of(parts.release),
        fingerprint(folders.collective_endpoint()._key._public),
        fingerprint(folders.individual_endpoint()._key._public),
        release.signer,
        folders.node(folders.collective).run_id,
        "form condensed",
        "4 x 3 x 3 x 3",
        "6 x 4 x 3 x 3",
        "1,024 samples",
        "x25519",
        f"{release.plaintext.size:,} bytes",
        release.ciphertext.sha256,
        time.strftime("%Y-%m-%d %H:%M", time.gmtime(release.expires_at)),
    ):
        assert expected in words, expected


def test_inspect_writes_json_for_programs(bundle: Path, command: Learngene) -> None:
    shown = json.loads(succeeded(command("inspect", bundle, "--json")))
    parts = bundle_file.read(bundle)
    assert shown["verified"] is False
    assert shown["kind"] == "bundle"
    assert shown["release"]["digest"] == digest_of(parts.release)
    assert shown["release"]["payload"] == opened(Release, parts.release).model_dump(mode="json")
    assert shown["grant"]["payload"]["release"] == shown["release"]["digest"]
    assert shown["blob"] == {"bytes": len(parts.blob), "sha256": digest_of(parts.blob)}
    weights = sum(
        array.size
        for name, (role, _) in architecture().tensors(fisher=False).items()
        if role == "weight"
        for array in [learngene().tensors[name]]
    )
    assert shown["parameters"] == weights
    assert sum(int(row[4].replace(",", "")) for row in inspection.layers(opened(Release, parts.release))) == weights


def test_inspect_tells_all_that_a_release_can_say(bundle: Path, tmp_path: Path, command: Learngene) -> None:
    parts = bundle_file.read(bundle)
    release = resigned(
        parts.release,
        STRANGER,
        signer=STRANGER.keyid,
        seq=7,
        prev="a" * 64,
        withdraws=("b" * 64, "c" * 64),
        fisher=None,
        dp=DifferentialPrivacy(
            epsilon_micro=2_500_000, delta_exponent=6, relation="replace", scope="fisher-given-weights"
        ),
        issued_at=2**40 - 1,
        expires_at=2**40,
    )
    file = tmp_path / "other.learngene"
    bundle_file.write(file, parts._replace(release=release, blob=b"short"))
    words = " ".join(succeeded(command("inspect", file)).split())
    for expected in (
        "number 7",
        "a" * 64,
        "b" * 64,
        "c" * 64,
        "epsilon 2.5, delta 1e-6, replace, fisher-given-weights of the Fisher diagonal alone, given the whole network",
        "the weights carry no guarantee",
        "Fisher none",
    ):
        assert expected in words
    assert "NOT those of the architecture" in words  # the Fisher diagonal's tensors are still listed
    assert "5, the release says 4,320" in words
    assert f"{2**40} s after 1970" in words
    assert fingerprint(STRANGER._public) in words


@pytest.mark.parametrize("kem", get_args(Kem))
def test_inspect_says_how_the_content_key_is_sealed(tmp_path: Path, command: Learngene, kem: Kem) -> None:
    folders = make_folders(tmp_path / "nodes", kem=kem)
    folders.publish()
    file = folders.exchange(tmp_path / "one.learngene")
    assert re.search(rf"content key +sealed, \d+ bytes, {kem} ", succeeded(command("inspect", file)))
    request = tmp_path / "request.json"
    request.write_bytes(folders.individual_endpoint().request("condensed", int(time.time()), os.urandom(16)))
    assert re.search(rf"encryption key +{kem}, ", succeeded(command("inspect", request)))


def test_inspect_reads_every_kind_of_message(folders: Folders, tmp_path: Path, command: Learngene) -> None:
    now = int(time.time())
    request = folders.individual_endpoint().request("paper", now, os.urandom(16), fresh=True)
    parts = bundle_file.read(folders.folder / "condensed.learngene")
    receipt = folders.individual_endpoint().inherit(*parts, now).receipt
    kinds = {"request": request, "release": parts.release, "grant": parts.grant, "receipt": receipt}
    file = tmp_path / "message"
    for kind, data in kinds.items():
        file.write_bytes(data)
        first, second, *_ = succeeded(command("inspect", file)).splitlines()
        assert first.startswith("NOT VERIFIED")
        assert second.strip() == kind
        assert json.loads(succeeded(command("inspect", file, "--json")))["digest"] == digest_of(data)


def test_inspect_reads_a_trust_store(folders: Folders, command: Learngene) -> None:
    done = command("inspect", folders.trust)
    assert done.code == 0
    assert done.out.startswith("NOT VERIFIED")
    assert fingerprint(ROOT._public) in done.out
    assert json.loads(command("inspect", folders.trust, "--json").out)["root"]["pinned"] is False


def test_inspect_says_when_an_envelope_names_another_key(bundle: Path, tmp_path: Path, command: Learngene) -> None:
    parts = bundle_file.read(bundle)
    body = envelope.parse(parts.release).payload
    release = signed_raw(PAYLOAD_TYPES["release"], body, COLLECTIVE, keyid="\x1b[31m[bold]pwn"[5:])
    file = tmp_path / "one.learngene"
    bundle_file.write(file, parts._replace(release=release))
    printed = succeeded(command("inspect", file))
    assert "another key" in printed
    assert "pwn" not in printed


def test_hostile_files_neither_steer_the_terminal_nor_get_through(
    bundle: Path, tmp_path: Path, command: Learngene
) -> None:
    parts, escape = bundle_file.read(bundle), "\x1b[2J\x07[bold red]"
    plain = {
        "payload": base64.b64encode(b"{}").decode(),
        "payloadType": "text/[bold]plain",
        "signatures": [{"keyid": "k", "sig": base64.b64encode(bytes(64)).decode()}],
    }
    body = canonical_json.decode(envelope.parse(parts.release).payload)
    cases: dict[str, bytes] = {
        "empty": b"",
        "no envelope": b"{}",
        "escapes": json.dumps({**plain, "payloadType": escape}).encode(),
        "raw escapes": json.dumps({**plain, "payloadType": "x"}).replace("x", escape).encode(),
        "unknown kind": canonical_json.encode(plain),
        "unknown field": signed_raw(PAYLOAD_TYPES["release"], canonical_json.encode({**body, "[bold]": 1}), COLLECTIVE),
        "cut short": bundle.read_bytes()[:-1],
        "two grants": bundle_file.encode(BundleFile(parts.grant, parts.grant, parts.blob)),
        "two releases": bundle_file.encode(BundleFile(parts.release, parts.release, parts.blob)),
        "noise": os.urandom(4096),
        "deep": b"[" * 60_000,
        "large": b" " * (2 << 20),
    }
    for name, data in cases.items():
        file = tmp_path / f"{name}{escape}"
        file.write_bytes(data)
        for arguments in (("inspect", file), ("inspect", file, "--json"), ("verify", file, "--trust", bundle)):
            done = command(*arguments)
            refused(done, code=1)
            assert "\x1b" not in done.err
            assert "\x07" not in done.err
    refused(command("inspect", tmp_path / "gone"), "cannot read")


def test_attack_what_is_no_file_or_endless_has_a_bundle_s_name(
    bundle: Path, folders: Folders, tmp_path: Path, command: Learngene
) -> None:
    """Nothing hangs and nothing is read to its end."""
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "folder").mkdir()
    (tmp_path / "device").symlink_to("/dev/zero")
    for name, head in (("sparse", b""), ("sparse bundle", bundle.read_bytes())):
        with (tmp_path / name).open("wb") as sparse:
            sparse.write(head)
            sparse.truncate(10 << 30)
    trust = folders.trust
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(tmp_path / "socket"))
        for name in ("pipe", "folder", "device", "socket"):
            for arguments in (("inspect",), ("inspect", "--json"), ("verify", "--trust", trust)):
                refused(command(*arguments, tmp_path / name), name)
    for name in ("sparse", "sparse bundle"):
        for arguments in (("inspect",), ("verify", "--trust", trust)):
            refused(command(*arguments, tmp_path / name), f"{name} is refused", code=1)


@pytest.mark.parametrize(
    "content",
    [b"", b"\x89PNG\r\n\x1a\n" * 9, b"{}", b"hello\n", bytes(5 << 20)],
    ids=["empty", "picture", "JSON", "text", "large"],
)
def test_inspect_of_a_foreign_file_says_so(tmp_path: Path, command: Learngene, content: bytes) -> None:
    file = tmp_path / "foreign"
    file.write_bytes(content)
    done = command("inspect", file)
    refused(done, "foreign is refused (malformed): it is no file of this project", code=1)
    assert done.err.count(str(file)) == 1


def test_a_refused_trust_store_is_named_once(
    folders: Folders, bundle: Path, tmp_path: Path, command: Learngene
) -> None:
    file = tmp_path / "other.file"
    file.write_bytes(bytes(32))
    done = command("verify", bundle, "--trust", file)
    refused(done, f"the trust store {file} is refused (malformed): ", code=1)
    assert done.err.count("other.file") == done.err.count("trust store") == 1


def test_verify_shows_the_trust_store_that_it_verified_under(
    tmp_path: Path, command: Learngene, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The keeper's next version arrives just when the bundle has been verified."""
    folders = make_folders(tmp_path / "nodes")
    folders.publish()
    bundle = folders.exchange(tmp_path / "one.learngene")
    store = read_trust(folders.trust, root=folders.root)
    verify = IndividualEndpoint.verify_file

    def then_replaced(endpoint: IndividualEndpoint, parts: BundleFile, now: int) -> VerifiedLearngene:
        verified = verify(endpoint, parts, now)
        later = store.with_rotated_key("collective", "collective", STRANGER.public_hex)
        write_trust(folders.trust, later, ROOT)
        return verified

    monkeypatch.setattr(IndividualEndpoint, "verify_file", then_replaced)
    printed = succeeded(command("verify", bundle, "--config", folders.individual))
    assert f"version {store.version}, root" in printed
    assert fingerprint(store.only("collective").raw) in printed
    monkeypatch.undo()
    refused(command("verify", bundle, "--config", folders.individual), "(revoked_key)", code=1)


def test_verify_without_a_key_proves_all_but_the_content(folders: Folders, bundle: Path, command: Learngene) -> None:
    printed = succeeded(command("verify", bundle, "--trust", folders.trust, "--root", folders.root))
    assert "not its content" in printed.splitlines()[0]
    assert results(printed) == {"trust store": "verified", **ALWAYS, **WITHOUT_LEDGER, "content": "NOT VERIFIED"}
    assert fingerprint(folders.individual_endpoint()._key._public) in printed


def test_verify_without_a_root_says_which_one_it_believed(folders: Folders, bundle: Path, command: Learngene) -> None:
    printed = succeeded(command("verify", bundle, "--trust", folders.trust, *folders.encryption))
    assert "nobody pinned" in printed
    assert fingerprint(ROOT._public) in printed
    assert results(printed) == {"trust store": "BELIEVED", **ALWAYS, **WITHOUT_LEDGER, "content": "verified"}


def test_verify_with_the_audience_s_key_proves_the_content(folders: Folders, bundle: Path, command: Learngene) -> None:
    options = ("--trust", folders.trust, "--root", folders.root.upper(), *folders.encryption)
    printed = succeeded(command("verify", bundle, *options))
    assert "and its content" in printed.splitlines()[0]
    assert results(printed) == {"trust store": "verified", **ALWAYS, **WITHOUT_LEDGER, "content": "verified"}


def test_verify_by_the_node_asks_its_ledger(folders: Folders, bundle: Path, command: Learngene) -> None:
    printed = succeeded(command("verify", bundle, "--config", folders.individual))
    proven = {"trust store", *ALWAYS, "chain", "withdrawal", "content"}
    assert results(printed) == {**dict.fromkeys(proven, "verified"), "newest": "NOT VERIFIED"}


def test_verify_says_that_a_bundle_was_withdrawn(tmp_path: Path, command: Learngene) -> None:
    folders = make_folders(tmp_path / "nodes")
    first = folders.publish()
    bundle = folders.exchange(tmp_path / "one.learngene")
    folders.collective_endpoint().withdraw(first.digest)
    folders.publish(learngene(seed=1))
    later = folders.exchange(tmp_path / "two.learngene")
    printed = warned(command("verify", bundle, "--config", folders.individual), "withdrawn", first.digest[:16])
    assert results(printed)["withdrawal"] == "WITHDRAWN"
    assert results(succeeded(command("verify", later, "--config", folders.individual)))["withdrawal"] == "verified"


@pytest.mark.parametrize("part", ["release", "grant", "blob"])
def test_a_tampered_file_is_refused_by_name(
    folders: Folders, bundle: Path, tmp_path: Path, command: Learngene, part: str
) -> None:
    parts = bundle_file.read(bundle)
    whole: bytes = getattr(parts, part)
    if part == "blob":
        changed, code = bytes([whole[0] ^ 1]) + whole[1:], "digest_mismatch"
    else:
        # The payload says something else, under the old signature.
        parsed = envelope.parse(whole)
        field = {"release": b'"seq":1', "grant": b'"v":1'}[part]
        body = parsed.payload.replace(field, field[:-1] + b"2")
        assert body != parsed.payload
        changed = envelope.encode(envelope.Envelope(parsed.payload_type, body, parsed.keyid, parsed.signature))
        code = "bad_signature"
    file = tmp_path / "tampered.learngene"
    bundle_file.write(file, parts._replace(**{part: changed}))
    for options in (("--trust", folders.trust), ("--config", folders.individual)):
        refused(command("verify", file, *options), "tampered.learngene", f"({code})", code=1)


def test_a_bundle_for_somebody_else_is_refused(
    folders: Folders, bundle: Path, tmp_path: Path, command: Learngene
) -> None:
    other = folders.other.parent
    keys = ("--encryption-key", other / "encryption.key", "--key-file", other / "key.secret")
    refused(command("verify", bundle, "--trust", folders.trust, *keys), "wrong_audience", code=1)
    make_ledger = command("verify", bundle, "--config", folders.other)
    refused(make_ledger, "no ledger")
    store = read_trust(folders.trust, root=None)
    individual = next(key for key in store.keys if key.party == "individual-1")
    revoked, nobody = tmp_path / "revoked.json", tmp_path / "nobody.json"
    write_trust(revoked, store.without_key(individual.keyid, "retired"), ROOT)
    refused(command("verify", bundle, "--trust", revoked), "(revoked_key)", code=1)
    write_trust(nobody, TrustStore(root=ROOT.public_hex, expires_at=int(time.time()) + 60), ROOT)
    refused(command("verify", bundle, "--trust", nobody), "(unknown_key)", code=1)


def test_a_trust_store_of_another_root_or_altered_is_refused(
    folders: Folders, bundle: Path, tmp_path: Path, command: Learngene
) -> None:
    stranger = ("--root", STRANGER.public_hex)
    refused(command("verify", bundle, "--trust", folders.trust, *stranger), "trust store", "(unknown_key)", code=1)
    altered = tmp_path / "altered.json"
    parsed = envelope.parse(folders.trust.read_bytes(), max_bytes=1 << 20)
    body = parsed.payload.replace(b"individual-1", b"individual-9")
    altered.write_bytes(envelope.encode(envelope.Envelope(parsed.payload_type, body, parsed.keyid, parsed.signature)))
    refused(command("verify", bundle, "--trust", altered), "trust store", "(bad_signature)", code=1)
    late = tmp_path / "late.json"
    write_trust(late, read_trust(folders.trust, root=None).with_expiry(int(time.time()) - 1), ROOT)
    refused(command("verify", bundle, "--trust", late), "(expired)", "trust store is past its time", code=1)


def test_a_file_past_its_time_is_refused_but_by_the_node_that_committed_it(tmp_path: Path, command: Learngene) -> None:
    folders, then = make_folders(tmp_path / "nodes"), int(time.time()) - LIFE - SKEW - 60
    folders.publish(at=then)
    bundle = folders.exchange(tmp_path / "old.learngene", at=then)
    refused(command("verify", bundle, "--trust", folders.trust), "(expired)", "past its time", code=1)
    printed = succeeded(command("verify", bundle, "--config", folders.individual))
    assert re.search(r"time +verified +past its time since .* committed it in time", printed)


def test_options_that_do_not_fit_are_one_line(
    folders: Folders, bundle: Path, tmp_path: Path, command: Learngene
) -> None:
    def verify(*options: object) -> Done:
        return command("verify", bundle, *options)

    refused(verify(), "--trust or --config")
    refused(verify("--config", folders.individual, "--trust", folders.trust), "give it alone")
    refused(verify("--config", folders.collective), "individual")
    refused(verify("--config", tmp_path / "gone.toml"), "cannot read the configuration")
    refused(verify("--trust", tmp_path / "gone.json"), "no trust store")
    refused(verify("--trust", folders.trust, "--root", "abc"), "64 hexadecimal")
    refused(verify("--trust", folders.trust, "--key-file", folders.encryption[3]), "--encryption-key")
    refused(verify("--trust", folders.trust, "--encryption-key", tmp_path / "gone.key"), "no encryption key")
    wrong = ("--encryption-key", folders.encryption[1], "--key-file", folders.other.parent / "key.secret")
    refused(verify("--trust", folders.trust, *wrong), "another key file")
    signing = folders.individual.parent / "signing.key"
    refused(verify("--trust", folders.trust, "--encryption-key", signing, *folders.encryption[2:]), "ed25519")
    refused(command("verify", tmp_path / "gone.learngene", "--trust", folders.trust), "cannot read the bundle file")


@pytest.mark.parametrize("name", ["inspect", "verify"])
def test_every_command_has_help_with_an_example(command: Learngene, name: str) -> None:
    assert f"learngene {name} " in succeeded(command(name, "--help")).split("Options:")[0]


def test_the_kinds_that_inspect_knows_are_the_protocol_s() -> None:
    assert set(payloads.MODELS) == set(PAYLOAD_TYPES.values())
