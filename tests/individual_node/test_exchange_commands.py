"""An exchange by files, from the individual's side: requests, bundles, notices of withdrawal, and what is refused."""

import functools
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from collective_node.cli import app as collective_app
from individual_node.cli import app as individual_app
from protocol.digest import digest_of
from protocol.exchange.audit import read_crossings
from protocol.keys.encryption_key import EncryptionKey
from protocol.keys.key_file import Unlock
from protocol.messages import bundle_file
from protocol.messages.bundle_file import BundleFile
from protocol.messages.payloads import Request
from tests.protocol.parties import learngene, opened
from tests.two_folders import Done, Folders, make_folders, refused, run, succeeded

Run = Callable[..., Done]


@pytest.fixture
def folders(tmp_path: Path) -> Folders:
    made = make_folders(tmp_path / "nodes")
    made.publish()
    return made


@pytest.fixture
def individual(folders: Folders) -> Run:
    """A command of ``individual-node`` for the first individual."""
    return lambda name, *more: run(individual_app, name, "--config", folders.individual, *more)


@pytest.fixture
def collective(folders: Folders) -> Run:
    """A command of ``collective-node``."""
    return lambda name, *more: run(collective_app, name, "--config", folders.collective, *more)


@pytest.fixture
def stick(tmp_path: Path) -> Path:
    """What is carried between the two."""
    folder = tmp_path / "stick"
    folder.mkdir()
    return folder


def asked(individual: Run, collective: Run, stick: Path, number: int = 1) -> Path:
    """The collective's answer to a request, whatever it is."""
    request, answer = stick / f"request-{number}.json", stick / f"answer-{number}.learngene"
    succeeded(individual("request", "--out", request))
    succeeded(collective("grant", "--request", request, "--out", answer))
    return answer


def test_the_whole_exchange_by_files(folders: Folders, individual: Run, collective: Run, stick: Path) -> None:
    request, answer, receipt = stick / "request.json", stick / "condensed.learngene", stick / "receipt.json"
    assert str(request) in succeeded(individual("request", "--form", "condensed", "--out", request))
    assert "a bundle file" in succeeded(collective("grant", "--request", request, "--out", answer))
    printed = succeeded(individual("inherit", answer, "--receipt", receipt))
    assert "inherited  condensed, release 1" in printed
    assert "individual-1 has stored" in succeeded(collective("receipt", receipt))
    for file in (request, answer, receipt):
        assert file.stat().st_mode & 0o777 == 0o600

    inherited = folders.individual_endpoint().learngene("condensed")
    assert inherited is not None
    for name, array in learngene().tensors.items():
        assert inherited.learngene.tensors[name].tobytes() == array.tobytes()
    packed = stick / "packed.learngene"
    succeeded(individual("bundle", "--out", packed))
    assert packed.read_bytes() == answer.read_bytes()

    # Both logs name the same crossings, and nothing else went.
    sides = [
        [
            (line.sender, line.receiver, line.kind, line.digest)
            for line in read_crossings(home / "state/crossings.jsonl")
        ]
        for home in (folders.collective.parent, folders.individual.parent)
    ]
    assert sides[0] == sides[1]
    assert [kind for _, _, kind, _ in sides[0]] == ["request", "release", "grant", "blob", "receipt"]


def test_a_learngene_s_plaintext_is_in_no_file_on_the_way(
    individual: Run, collective: Run, stick: Path, folders: Folders
) -> None:
    asked(individual, collective, stick)
    succeeded(individual("inherit", stick / "answer-1.learngene", "--receipt", stick / "receipt.json"))
    weights = learngene().tensors["block.1.conv.weight"].tobytes()
    kept = [path for home in (folders.folder, stick) for path in home.rglob("*") if path.is_file()]
    assert len(kept) > 10
    assert not [path for path in kept if weights[:64] in path.read_bytes()]


def test_a_request_that_waits_is_written_again_until_a_fresh_one_is_asked_for(individual: Run, stick: Path) -> None:
    files = [stick / f"{number}.json" for number in range(3)]
    succeeded(individual("request", "--out", files[0]))
    succeeded(individual("request", "--out", files[1]))
    succeeded(individual("request", "--out", files[2], "--fresh"))
    first, second, fresh = (file.read_bytes() for file in files)
    assert first == second
    assert opened(Request, fresh).nonce != opened(Request, first).nonce


def test_the_same_answer_again_changes_nothing(individual: Run, collective: Run, stick: Path) -> None:
    answer = asked(individual, collective, stick)
    receipts = [stick / f"receipt-{number}.json" for number in range(2)]
    for receipt in receipts:
        succeeded(individual("inherit", answer, "--receipt", receipt))
        succeeded(collective("receipt", receipt))
    assert receipts[0].read_bytes() == receipts[1].read_bytes()
    again = stick / "again.learngene"
    succeeded(collective("grant", "--request", stick / "request-1.json", "--out", again))
    assert again.read_bytes() == answer.read_bytes()


def test_an_older_file_that_was_inherited_leaves_the_newest_in_place(
    folders: Folders, individual: Run, collective: Run, stick: Path
) -> None:
    first = asked(individual, collective, stick)
    succeeded(individual("inherit", first))
    newest = folders.publish(learngene(seed=1))
    succeeded(individual("inherit", asked(individual, collective, stick, 2)))
    printed = succeeded(individual("inherit", first))
    assert f"older release {digest_of(bundle_file.read(first).release)}" in printed
    assert newest.digest in printed


def test_withdrawn_without_replacement_is_answered_with_a_notice(
    folders: Folders, individual: Run, collective: Run, stick: Path
) -> None:
    succeeded(individual("inherit", asked(individual, collective, stick)))
    succeeded(collective("withdraw", 1))
    notice, receipt = stick / "notice.json", stick / "receipt.json"
    succeeded(individual("request", "--out", stick / "second.json"))
    assert "notice" in succeeded(collective("grant", "--request", stick / "second.json", "--out", notice))
    assert notice.stat().st_mode & 0o777 == 0o600
    endpoint = folders.individual_endpoint()
    kept = endpoint.learngene("condensed")
    assert kept is not None
    assert not endpoint.withdrawn(kept.release_digest)
    for _ in range(2):
        assert "withdrawn" in succeeded(individual("inherit", notice, "--receipt", receipt))
        assert endpoint.withdrawn(kept.release_digest)
    assert not receipt.exists()


def test_withdrawn_then_replaced_the_next_release_says_so(
    folders: Folders, individual: Run, collective: Run, stick: Path
) -> None:
    first = asked(individual, collective, stick)
    succeeded(individual("inherit", first))
    succeeded(collective("withdraw", 1))
    replacement = folders.publish(learngene(seed=1))
    printed = succeeded(individual("inherit", asked(individual, collective, stick, 2)))
    withdrawn = digest_of(bundle_file.read(first).release)
    assert f"release 2 of run {replacement.payload.run_id}, {replacement.digest}" in printed
    assert f"withdrawn  release {withdrawn}" in printed
    assert folders.individual_endpoint().withdrawn(withdrawn)
    assert not folders.individual_endpoint().withdrawn(replacement.digest)


def test_what_was_withdrawn_before_it_came_is_not_inherited(
    folders: Folders, individual: Run, collective: Run, stick: Path
) -> None:
    late = asked(individual, collective, stick)
    succeeded(collective("withdraw", 1))
    notice = asked(individual, collective, stick, 2)
    succeeded(individual("inherit", notice))
    refused(individual("inherit", late), "(expired)", "withdrawn", code=1)
    assert folders.individual_endpoint().learngene("condensed") is None
    # The same request is answered once there is something to answer it with.
    folders.publish(learngene(seed=1))
    assert "release 2" in succeeded(individual("inherit", asked(individual, collective, stick, 3)))


@pytest.mark.parametrize("part", ["release", "grant", "blob"])
def test_a_tampered_answer_is_refused_and_the_right_one_still_inherited(
    individual: Run, collective: Run, stick: Path, part: str
) -> None:
    answer = asked(individual, collective, stick)
    parts = bundle_file.read(answer)
    whole: bytes = getattr(parts, part)
    tampered = stick / "tampered.learngene"
    bundle_file.write(tampered, parts._replace(**{part: whole[:-1] + bytes([whole[-1] ^ 1])}))
    receipt = stick / "receipt.json"
    refused(individual("inherit", tampered, "--receipt", receipt), "tampered.learngene is refused", code=1)
    assert not receipt.exists()
    succeeded(individual("inherit", answer, "--receipt", receipt))


def test_an_answer_for_somebody_else_is_refused(
    folders: Folders, individual: Run, collective: Run, stick: Path
) -> None:
    answer = asked(individual, collective, stick)
    other = functools.partial(run, individual_app)
    refused(other("inherit", "--config", folders.other, answer), "no ledger")
    succeeded(other("request", "--config", folders.other, "--out", stick / "theirs.json"))
    refused(other("inherit", "--config", folders.other, answer), "(wrong_audience)", code=1)
    succeeded(collective("withdraw", 1))
    notice = asked(individual, collective, stick, 2)
    refused(other("inherit", "--config", folders.other, notice), "(wrong_audience)", code=1)


def test_the_wrong_keys_are_refused(folders: Folders, individual: Run, collective: Run, stick: Path) -> None:
    answer = asked(individual, collective, stick)
    home, text = folders.individual.parent, folders.individual.read_text()
    theirs = json.dumps(str(folders.other.parent / "key.secret"))
    folders.individual.write_text(text.replace('"key.secret"', theirs))
    refused(individual("inherit", answer), "another key file")
    # A key that opens, but nothing was sealed to it.
    EncryptionKey.generate().save(home / "new.key", Unlock.key_file(home / "key.secret"))
    folders.individual.write_text(text.replace('"encryption.key"', '"new.key"'))
    refused(individual("inherit", answer), "(wrong_audience)", "encryption key", code=1)
    folders.individual.write_text(text)
    succeeded(individual("inherit", answer))


def test_files_of_another_kind_are_refused(folders: Folders, individual: Run, collective: Run, stick: Path) -> None:
    answer = asked(individual, collective, stick)
    refused(individual("inherit", stick / "request-1.json"), "(unknown_key)", code=1)
    (stick / "grant.json").write_bytes(bundle_file.read(answer).grant)
    refused(individual("inherit", stick / "grant.json"), "(malformed)", "not the expected abort", code=1)
    (stick / "noise").write_bytes(b"\0" * 99)
    refused(individual("inherit", stick / "noise"), "(malformed)", code=1)
    short = BundleFile(*bundle_file.read(answer))
    (stick / "short").write_bytes(bundle_file.encode(short)[:-1])
    refused(individual("inherit", stick / "short"), "(malformed)", "copy it again", code=1)
    succeeded(individual("inherit", answer))


def test_wrong_input_is_one_line(folders: Folders, individual: Run, collective: Run, stick: Path) -> None:
    out = stick / "request.json"
    refused(individual("request", "--form", "tall", "--out", out), "'tall'", "condensed")
    refused(individual("request", "--out", stick / "nowhere" / "request.json"), "no folder")
    refused(run(individual_app, "request", "--config", folders.collective, "--out", out), "individual")
    refused(run(individual_app, "request", "--config", stick / "gone.toml", "--out", out), "cannot read")
    refused(individual("inherit", stick / "gone.learngene"), "no ledger")
    assert not out.exists()
    answer = asked(individual, collective, stick)
    refused(individual("request", "--out", answer), "not overwritten")
    refused(individual("inherit", answer, "--receipt", stick / "request-1.json"), "not overwritten")
    refused(individual("inherit", answer, "--receipt", stick / "nowhere" / "r"), "no folder")
    refused(individual("inherit", stick / "gone.learngene"), "cannot read")
    assert folders.individual_endpoint().learngene("condensed") is None
    folders.trust.unlink()
    refused(individual("inherit", answer), "trust store")


def test_exchanging_files_needs_no_torch(folders: Folders, stick: Path) -> None:
    code = (
        "import sys; from individual_node.cli import app; from protocol.commands.terminal import run_app\n"
        "try: run_app(app, sys.argv[1:])\n"
        "finally: print('torch' in sys.modules)"
    )
    arguments = ["request", "--config", str(folders.individual), "--out", str(stick / "request.json")]
    done = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "False"
