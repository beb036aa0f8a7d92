"""The collective's commands for exchanges by files and for its releases, beside a node on the same ledger."""

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from collective_node.cli import app
from protocol.exchange.collective_endpoint import Withdrawal
from protocol.messages import bundle_file
from protocol.messages.payloads import LIFE, SKEW, Release
from protocol.node.load_keys import load_keys
from protocol.trust.trust_file import read_trust, write_trust
from tests.protocol.parties import ROOT, learngene, opened, resigned
from tests.two_folders import Done, Folders, make_folders, refused, run, succeeded

Run = Callable[..., Done]


@pytest.fixture
def folders(tmp_path: Path) -> Folders:
    return make_folders(tmp_path / "nodes")


@pytest.fixture
def collective(folders: Folders) -> Run:
    """A command of ``collective-node``."""
    return lambda name, *more: run(app, name, "--config", folders.collective, *more)


def requested(folders: Folders, file: Path, *, at: int | None = None) -> Path:
    when = int(time.time()) if at is None else at
    file.write_bytes(folders.individual_endpoint().request("condensed", when, os.urandom(16), fresh=True))
    return file


def test_releases_lists_the_chain(folders: Folders, collective: Run, tmp_path: Path) -> None:
    refused(collective("releases"), "no ledger")
    folders.collective_endpoint()
    assert "nothing is published" in succeeded(collective("releases"))
    first = folders.publish()
    second = folders.publish(learngene(form="paper"))
    folders.exchange(tmp_path / "one.learngene")
    granted = requested(folders, tmp_path / "request.json")
    succeeded(collective("grant", "--request", granted, "--out", tmp_path / "two.learngene"))
    succeeded(collective("withdraw", second.digest[:12]))

    listed = json.loads(succeeded(collective("releases", "--json")))
    assert [(entry["number"], entry["form"], entry["digest"]) for entry in listed] == [
        (1, "condensed", first.digest),
        (2, "paper", second.digest),
        (3, "condensed", listed[2]["digest"]),
    ]
    assert [entry["withdrawn"] for entry in listed] == [False, True, False]
    assert [entry["withdraws"] for entry in listed] == [[], [], [second.digest]]
    # Twice, but to one individual; `exchange` leaves its receipt there.
    assert [(entry["granted"], entry["receipts"]) for entry in listed] == [(1, 0), (0, 0), (0, 0)]
    rows = [
        line.split()
        for line in succeeded(collective("releases")).splitlines()
        if "condensed" in line or "paper" in line
    ]
    assert [(row[0], row[-1]) for row in rows] == [(str(entry["number"]), entry["digest"]) for entry in listed]
    assert rows[0][-1] == first.digest


def test_a_withdrawn_release_is_granted_no_more(folders: Folders, collective: Run, tmp_path: Path) -> None:
    first = folders.publish()
    request = requested(folders, tmp_path / "request.json")
    succeeded(collective("grant", "--request", request, "--out", tmp_path / "one.learngene"))
    assert "granted to 1 individual." in succeeded(collective("withdraw", "1"))
    assert "before" in succeeded(collective("withdraw", first.digest))
    out = tmp_path / "two.learngene"
    assert "no learngene" in succeeded(collective("grant", "--request", request, "--out", out))
    assert not out.read_bytes().startswith(bundle_file.MAGIC)
    later = folders.publish(learngene(seed=1))
    assert later.payload.withdraws == (first.digest,)
    replaced = tmp_path / "three.learngene"
    succeeded(collective("grant", "--request", request, "--out", replaced))
    assert opened(Release, bundle_file.read(replaced).release).seq == 2


def test_withdrawing_what_is_not_the_newest_tells_whoever_requests_next(
    folders: Folders, collective: Run, tmp_path: Path
) -> None:
    first = folders.publish()
    individual = folders.individual_endpoint()
    individual.inherit(*bundle_file.read(folders.exchange(tmp_path / "one.learngene")), int(time.time()))
    folders.publish(learngene(seed=1))
    folders.publish(learngene(form="paper"))
    printed = succeeded(collective("withdraw", 1))
    assert "granted to 1 individual." in printed
    assert "released   condensed once more, as release" in printed
    assert "released   paper once more, as release" in printed
    chain = folders.collective_endpoint().releases()
    assert [release.payload.withdraws for release in chain] == [(), (), (), (first.digest,), (first.digest,)]
    assert not individual.withdrawn(first.digest)
    request = tmp_path / "request.json"
    request.write_bytes(individual.request("paper", int(time.time()), os.urandom(16)))
    succeeded(collective("grant", "--request", request, "--out", tmp_path / "paper.learngene"))
    individual.inherit(*bundle_file.read(tmp_path / "paper.learngene"), int(time.time()))
    assert individual.withdrawn(first.digest)
    # Everything is said; the same again makes nothing.
    assert "released" not in succeeded(collective("withdraw", 1))
    assert len(folders.collective_endpoint().releases()) == 5


def test_a_withdrawal_holds_without_the_key_and_what_is_left_to_do_is_said(folders: Folders, collective: Run) -> None:
    first = folders.publish()
    folders.publish(learngene(seed=1))
    key = folders.collective.parent / "signing.key"
    data = key.read_bytes()
    key.unlink()
    done = collective("withdraw", 1)
    assert (done.code, done.err.count("\n")) == (2, 1)
    assert "granted no more, but not every release tells of it yet" in done.out
    assert "is told" not in done.out
    key.write_bytes(data)
    key.chmod(0o600)
    chain = folders.collective_endpoint().releases()
    assert [release.withdrawn for release in chain] == [True, False]
    printed = succeeded(collective("withdraw", 1))
    assert "before" in printed
    assert "once more, as release 3" in printed
    assert folders.collective_endpoint().releases()[-1].payload.withdraws == (first.digest,)


def test_a_node_that_is_running_hears_of_a_withdrawal_at_once(
    folders: Folders, collective: Run, tmp_path: Path
) -> None:
    folders.publish()
    running = folders.collective_endpoint()
    request = requested(folders, tmp_path / "request.json").read_bytes()
    assert not isinstance(running.answer_request(request, int(time.time())), Withdrawal)
    succeeded(collective("withdraw", 1))
    assert isinstance(running.answer_request(request, int(time.time())), Withdrawal)


def test_commands_and_a_running_node_share_the_ledger(folders: Folders, tmp_path: Path) -> None:
    """A node publishes without a pause while commands in other processes answer, list and withdraw."""
    folders.publish()
    request = requested(folders, tmp_path / "request.json")
    endpoint, stop, failed = folders.collective_endpoint(), threading.Event(), []

    def publish() -> None:
        seed = 1
        while not stop.is_set():
            try:
                endpoint.publish(learngene(seed=seed), int(time.time()), os.urandom(32))
            except Exception as error:
                failed.append(error)
            seed += 1

    node = threading.Thread(target=publish)
    node.start()
    try:
        common = ["--config", str(folders.collective)]
        commands = [
            ["grant", *common, "--request", str(request), "--out", str(tmp_path / "one.learngene")],
            ["releases", *common, "--json"],
            ["withdraw", *common, "1"],
            ["releases", *common],
        ]
        ended = [
            subprocess.run([sys.executable, "-m", "collective_node", *arguments], capture_output=True, text=True)
            for arguments in commands
        ]
    finally:
        stop.set()
        node.join()
    assert [(done.returncode, done.stderr) for done in ended] == [(0, "")] * len(commands)
    assert failed == []
    chain = endpoint.releases()
    assert len(chain) > 2
    assert [release.seq for release in chain] == list(range(1, len(chain) + 1))
    assert [release.payload.prev for release in chain[1:]] == [release.digest for release in chain[:-1]]
    assert chain[0].withdrawn
    assert chain[0].digest in chain[-1].payload.withdraws


def test_requests_that_must_not_be_answered_are_refused(folders: Folders, collective: Run, tmp_path: Path) -> None:
    # Before the other: a node whose clock is set back goes on by the time that it knows.
    old = requested(folders, tmp_path / "old.json", at=int(time.time()) - LIFE - SKEW - 60)
    request = requested(folders, tmp_path / "request.json")
    out = tmp_path / "one.learngene"

    def grant(file: Path) -> Done:
        done = collective("grant", "--request", file, "--out", out)
        assert not out.exists()
        return done

    refused(grant(request), "no ledger")
    folders.collective_endpoint()
    refused(grant(request), "(policy_denied)", "publish first", code=1)
    folders.publish()
    data = request.read_bytes()
    cases: dict[str, tuple[bytes, str]] = {
        "altered.json": (data.replace(b'"sig":"', b'"sig":"AAAA', 1)[:-4] + b'"}]}', "malformed"),
        "noise.json": (b"\x1b[2J", "malformed"),
        "large.json": (b" " * (1 << 17), "too_large"),
        "bundle.json": (bundle_file.MAGIC * 9, "malformed"),
    }
    for name, (content, code) in cases.items():
        file = tmp_path / name
        file.write_bytes(content)
        refused(grant(file), f"{name} is refused ({code})", code=1)
    refused(grant(old), "(expired)", code=1)
    refused(grant(tmp_path / "gone.json"), "cannot read")
    # Whom the root's keeper has just revoked gets nothing.
    store = read_trust(folders.trust, root=ROOT.public_hex)
    individual = next(key for key in store.keys if key.party == "individual-1")
    write_trust(folders.collective.parent / "trust.json", store.without_key(individual.keyid, "compromised"), ROOT)
    refused(grant(request), "(revoked_key)", code=1)
    write_trust(folders.collective.parent / "trust.json", store, ROOT)
    refused(grant(request), "(rollback)", code=1)


def test_receipts_that_must_not_be_believed_are_refused(folders: Folders, collective: Run, tmp_path: Path) -> None:
    folders.publish()
    folders.exchange(tmp_path / "one.learngene")
    endpoint = folders.individual_endpoint()
    receipt = endpoint.inherit(*bundle_file.read(tmp_path / "one.learngene"), int(time.time())).receipt
    file = tmp_path / "receipt.json"
    key = load_keys(folders.node(folders.individual)).signing
    file.write_bytes(resigned(receipt, key, release="a" * 64))
    refused(collective("receipt", file), "(wrong_audience)", "never granted", code=1)
    refused(collective("receipt", requested(folders, tmp_path / "request.json")), "(malformed)", code=1)
    file.write_bytes(receipt)
    for _ in range(2):
        assert "individual-1 has stored" in succeeded(collective("receipt", file))
    assert json.loads(succeeded(collective("releases", "--json")))[0]["receipts"] == 1


def test_wrong_input_is_one_line(folders: Folders, collective: Run, tmp_path: Path) -> None:
    first = folders.publish()
    request = requested(folders, tmp_path / "request.json")
    refused(collective("grant", "--request", request, "--out", request), "not overwritten")
    refused(collective("grant", "--request", request, "--out", tmp_path / "nowhere" / "x"), "no folder")
    refused(
        run(app, "grant", "--config", folders.individual, "--request", request, "--out", tmp_path / "x"), "collective"
    )
    refused(run(app, "releases", "--config", folders.individual), "collective")
    for text in ("2", "0", "one", first.digest[:7], "0" * 64, "99999999"):
        refused(collective("withdraw", text), repr(text), "releases")
    assert [release.withdrawn for release in folders.collective_endpoint().releases()] == [False]
    succeeded(collective("withdraw", first.digest[:8].upper()))


def test_listing_and_withdrawing_all_that_is_granted_need_no_key(folders: Folders, collective: Run) -> None:
    folders.publish()
    (folders.collective.parent / "signing.key").unlink()
    succeeded(collective("releases"))
    succeeded(collective("withdraw", 1))


def test_the_command_line_loads_no_torch() -> None:
    code = "import sys, collective_node.cli; print(sorted({'torch', 'numpy'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize("command", ["grant", "receipt", "releases", "withdraw"])
def test_every_command_has_help_with_an_example(collective: Run, command: str) -> None:
    printed = succeeded(run(app, command, "--help"))
    assert f"collective-node {command} " in printed.split("Options:")[0]
