"""``learngene trust``: the root's keeper makes, changes and shows a trust store, and nobody else can."""

import json
import re
import time
from dataclasses import dataclass
from pathlib import Path

import pytest
import typer

from protocol.commands import trust_commands
from protocol.commands.terminal import make_app, run_app
from protocol.errors import RevokedKeyError
from protocol.keys.key_file import Unlock, make_key_file
from protocol.keys.signing_key import SigningKey
from protocol.trust.trust_file import read_trust, write_trust
from protocol.trust.trust_store import TrustStore
from tests.protocol.parties import COLLECTIVE, INDIVIDUAL, OTHER_INDIVIDUAL, ROOT, STRANGER

SECOND_ROOT = SigningKey.from_seed(b"2" * 32)
DAY = 24 * 3600


@dataclass
class Keeper:
    """Whoever keeps the root key: its folder, and what the last command said."""

    folder: Path
    capture: pytest.CaptureFixture[str]
    out: str = ""
    err: str = ""

    @property
    def trust(self) -> Path:
        return self.folder / "trust.json"

    def run(self, *arguments: str) -> int:
        app = make_app("A test.")
        trust_commands.register(app)
        self.capture.readouterr()
        with pytest.raises(SystemExit) as ended:
            run_app(app, ["trust", *arguments])
        self.out, self.err = self.capture.readouterr()
        assert isinstance(ended.value.code, int)
        return ended.value.code

    def change(self, command: str, *arguments: str, root: str = "root.key") -> int:
        """A command that needs the root key."""
        key, unlock = str(self.folder / root), str(self.folder / "secret")
        return self.run(command, "--root-key", key, "--key-file", unlock, "--trust", str(self.trust), *arguments)

    def add(self, role: str, party: str, key: SigningKey, *more: str) -> int:
        return self.change("add", "--role", role, "--party", party, "--public", key.public_hex, *more)

    @property
    def store(self) -> TrustStore:
        return read_trust(self.trust, root=ROOT.public_hex)


@pytest.fixture
def keeper(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Keeper:
    """A root's keeper with a trust store that pins one collective and one individual."""
    keeper = Keeper(tmp_path, capsys)
    make_key_file(tmp_path / "secret")
    unlock = Unlock.key_file(tmp_path / "secret")
    ROOT.save(tmp_path / "root.key", unlock)
    SECOND_ROOT.save(tmp_path / "root-2.key", unlock)
    options = ["--root-key", str(tmp_path / "root.key"), "--key-file", str(tmp_path / "secret")]
    assert keeper.run("init", *options, "--out", str(keeper.trust)) == 0, keeper.err
    assert ROOT.public_hex in keeper.out
    assert ROOT.fingerprint in keeper.out
    assert keeper.add("collective", "collective", COLLECTIVE) == 0, keeper.err
    assert keeper.add("individual", "individual-1", INDIVIDUAL) == 0, keeper.err
    return keeper


def test_a_store_is_made_and_keys_are_pinned(keeper: Keeper) -> None:
    store = keeper.store
    assert [(key.role, key.party, key.public) for key in store.keys] == [
        ("collective", "collective", COLLECTIVE.public_hex),
        ("individual", "individual-1", INDIVIDUAL.public_hex),
    ]
    assert store.version == 3
    assert INDIVIDUAL.fingerprint in keeper.out
    assert "Compare it with individual-1" in keeper.out
    year = store.expires_at - int(time.time())
    assert 364 * DAY < year <= 365 * DAY


def test_an_existing_store_is_not_overwritten(keeper: Keeper) -> None:
    before = keeper.trust.read_bytes()
    options = ["--root-key", str(keeper.folder / "root.key"), "--key-file", str(keeper.folder / "secret")]
    assert keeper.run("init", *options, "--out", str(keeper.trust)) == 2
    assert "not overwritten" in keeper.err
    assert keeper.trust.read_bytes() == before
    assert keeper.run("init", *options, "--out", str(keeper.folder / "no" / "trust.json")) == 2
    assert keeper.run("init", *options, "--out", str(keeper.folder / "other.json"), "--days", "0") == 2
    assert not (keeper.folder / "other.json").exists()


def test_the_fingerprint_that_was_read_aloud_must_fit(keeper: Keeper) -> None:
    """As people write it down; the words of another key are somebody in the middle."""
    before = keeper.trust.read_bytes()
    assert keeper.add("individual", "individual-2", OTHER_INDIVIDUAL, "--fingerprint", STRANGER.fingerprint) == 2
    assert "somebody may have changed the key" in keeper.err
    assert keeper.trust.read_bytes() == before
    spoken = OTHER_INDIVIDUAL.fingerprint.upper().replace("-", ", ")
    assert keeper.add("individual", "individual-2", OTHER_INDIVIDUAL, "--fingerprint", spoken) == 0
    assert "Compare it" not in keeper.out
    assert keeper.store.key_for(OTHER_INDIVIDUAL.keyid, "individual").party == "individual-2"


@pytest.mark.parametrize(
    "named",
    ["individual-1", INDIVIDUAL.fingerprint, INDIVIDUAL.fingerprint.replace("-", " ").title(), INDIVIDUAL.keyid[:8]],
)
def test_a_key_is_revoked_by_each_of_its_names(keeper: Keeper, named: str) -> None:
    assert keeper.change("revoke", named, "--reason", "compromised") == 0, keeper.err
    store = keeper.store
    with pytest.raises(RevokedKeyError, match="compromised"):
        store.key_for(INDIVIDUAL.keyid, "individual")
    assert store.only("collective").public == COLLECTIVE.public_hex
    assert keeper.change("revoke", named, "--reason", "compromised") == 2
    assert "revoked already" in keeper.err


@pytest.mark.parametrize("reason", ["superseded", "retired"])
def test_a_key_that_left_in_good_faith_can_turn_out_to_be_compromised(keeper: Keeper, reason: str) -> None:
    """Named by what is its own alone, since its party's name may be another key's by now; never the other way."""
    if reason == "superseded":
        rotate = ["rotate", "--party", "individual-1", "--role", "individual", "--public", STRANGER.public_hex]
        assert keeper.change(*rotate) == 0, keeper.err
    else:
        assert keeper.change("revoke", "individual-1", "--reason", "retired") == 0
    assert not keeper.store.is_compromised(INDIVIDUAL.keyid)
    for name in (INDIVIDUAL.fingerprint, INDIVIDUAL.keyid[:8]):
        assert keeper.change("revoke", name, "--reason", "retired") == 2
        assert f"revoked already, as {reason}" in keeper.err
    before = keeper.store
    assert keeper.change("revoke", INDIVIDUAL.keyid[:8], "--reason", "compromised") == 0, keeper.err
    after = keeper.store
    assert after.is_compromised(INDIVIDUAL.keyid)
    assert after.keys == before.keys
    assert [(key.keyid, key.version) for key in after.revoked] == [(INDIVIDUAL.keyid, after.version)]
    for again in ("compromised", "retired"):
        assert keeper.change("revoke", INDIVIDUAL.fingerprint, "--reason", again) == 2
        assert "revoked already, as compromised" in keeper.err
    # The party's name is its present key's.
    code = keeper.change("revoke", "individual-1", "--reason", "compromised")
    assert (code, keeper.store.is_compromised(STRANGER.keyid)) == ((0, True) if reason == "superseded" else (2, False))


@pytest.mark.parametrize(
    ("named", "reason", "said"),
    [
        ("nobody", "retired", "no key in the trust store"),
        (STRANGER.fingerprint, "retired", "no key in the trust store"),
        (INDIVIDUAL.keyid[:7], "retired", "no key in the trust store"),
        ("individual-1", "superseded", "--reason"),
        ("individual-1", "dunno", "--reason"),
    ],
)
def test_what_cannot_be_revoked(keeper: Keeper, named: str, reason: str, said: str) -> None:
    before = keeper.trust.read_bytes()
    assert keeper.change("revoke", named, "--reason", reason) == 2
    assert said in keeper.err
    assert keeper.trust.read_bytes() == before


def test_a_name_of_two_keys_revokes_neither(keeper: Keeper) -> None:
    """Also a party that is called as another's key id begins: no key is revoked for another's name."""
    assert keeper.add("individual", "collective", STRANGER) == 0
    assert keeper.add("individual", INDIVIDUAL.keyid[:8], OTHER_INDIVIDUAL) == 0
    before = keeper.trust.read_bytes()
    for name in ("collective", INDIVIDUAL.keyid[:8]):
        assert keeper.change("revoke", name, "--reason", "retired") == 2
        assert "names 2 keys" in keeper.err
    assert keeper.trust.read_bytes() == before
    assert keeper.change("revoke", STRANGER.fingerprint, "--reason", "retired") == 0


def test_a_party_s_key_is_rotated(keeper: Keeper) -> None:
    rotate = ["rotate", "--party", "collective", "--role", "collective", "--public", STRANGER.public_hex]
    assert keeper.change(*rotate, "--fingerprint", COLLECTIVE.fingerprint) == 2
    assert keeper.change(*rotate, "--fingerprint", STRANGER.fingerprint) == 0, keeper.err
    store = keeper.store
    assert (store.only("collective").public, store.only("collective").epoch) == (STRANGER.public_hex, 2)
    with pytest.raises(RevokedKeyError, match="superseded"):
        store.key_for(COLLECTIVE.keyid, "collective")


def test_the_root_is_rotated_and_the_old_one_changes_nothing_more(keeper: Keeper) -> None:
    new = ["--new-root-key", str(keeper.folder / "root-2.key"), "--new-key-file", str(keeper.folder / "secret")]
    assert keeper.change("rotate", *new) == 0, keeper.err
    assert SECOND_ROOT.fingerprint in keeper.out
    # A node that pins the old root follows, and so does one that pins the new one.
    assert keeper.store == read_trust(keeper.trust, root=SECOND_ROOT.public_hex)
    before = keeper.trust.read_bytes()
    assert keeper.add("individual", "individual-2", OTHER_INDIVIDUAL) == 2
    assert "was the root" in keeper.err
    assert keeper.trust.read_bytes() == before
    assert keeper.change("renew", root="root-2.key") == 0
    assert keeper.change("rotate", *new, root="root-2.key") == 2


def test_rotate_asks_for_one_thing(keeper: Keeper) -> None:
    before = keeper.trust.read_bytes()
    new = ["--new-root-key", str(keeper.folder / "root-2.key"), "--new-key-file", str(keeper.folder / "secret")]
    assert keeper.change("rotate") == 2
    assert keeper.change("rotate", "--party", "collective", "--role", "collective") == 2
    assert keeper.change("rotate", "--party", "collective", *new) == 2
    assert keeper.trust.read_bytes() == before


def test_a_store_is_renewed(keeper: Keeper) -> None:
    before = keeper.store
    assert keeper.change("renew", "--days", "700") == 0
    after = keeper.store
    assert after.expires_at - before.expires_at > 300 * DAY
    assert (after.keys, after.version) == (before.keys, before.version + 1)
    assert keeper.err == ""
    assert keeper.change("renew", "--days", "3") == 0
    assert "trust renew" in keeper.err


def test_a_store_whose_root_key_is_missing_cannot_be_changed(keeper: Keeper) -> None:
    """Also not with another key, with a forged store under it, or without what opens the key."""
    before = keeper.trust.read_bytes()
    changes = [
        ["add", "--role", "individual", "--party", "x", "--public", STRANGER.public_hex],
        ["revoke", "individual-1", "--reason", "retired"],
        ["rotate", "--party", "collective", "--role", "collective", "--public", STRANGER.public_hex],
        ["renew"],
    ]
    for change in changes:
        assert keeper.change(*change, root="gone.key") == 2
        assert "there is no root key" in keeper.err
        assert keeper.err.count("\n") == 1
        # A refusal, not wrong usage: the file was not made by this root.
        assert keeper.change(*change, root="root-2.key") == 1
        assert "nothing leads to it" in keeper.err
        assert keeper.trust.read_bytes() == before
    key = ["--root-key", str(keeper.folder / "root.key"), "--key-file", str(keeper.folder / "root.key")]
    assert keeper.run("renew", *key, "--trust", str(keeper.trust)) == 2
    assert keeper.trust.read_bytes() == before
    assert keeper.change("renew") == 0


def test_attack_forged_store_is_not_signed_over(keeper: Keeper) -> None:
    """Somebody swaps the file before the keeper's next change: the root must not bless what it holds."""
    forger = SigningKey.from_seed(b"!" * 32)
    forged = TrustStore(root=forger.public_hex, expires_at=2**40).with_key(
        STRANGER.public_hex, "collective", "collective"
    )
    write_trust(keeper.trust, forged, forger)
    assert keeper.add("individual", "individual-2", OTHER_INDIVIDUAL) == 1
    assert read_trust(keeper.trust, root=forger.public_hex) == forged


@pytest.mark.parametrize("public", ["xyz", "00" * 31, "00" * 32, "ff" * 32, INDIVIDUAL.public_hex])
def test_a_key_that_must_not_be_pinned_is_one_line_and_code_2(keeper: Keeper, public: str) -> None:
    before = keeper.trust.read_bytes()
    assert keeper.change("add", "--role", "individual", "--party", "x", "--public", public) == 2
    assert keeper.err.startswith("error: ")
    assert keeper.err.count("\n") == 1
    assert keeper.trust.read_bytes() == before
    assert keeper.change("add", "--role", "king", "--party", "x", "--public", STRANGER.public_hex) == 2
    assert "--role" in keeper.err


def test_what_is_wrong_names_the_option_and_what_to_do(keeper: Keeper) -> None:
    pin = ["add", "--role", "individual", "--public"]
    for arguments, said in (
        ([*pin, STRANGER.public_hex, "--party", "Bad Name"], "--party 'Bad Name'"),
        ([*pin, "zz", "--party", "x"], "--public has 64 hexadecimal digits"),
        ([*pin, "00" * 32, "--party", "x"], "--public: the public key is of small order"),
        ([*pin, ROOT.public_hex, "--party", "x"], "a root key signs the trust store and nothing else"),
    ):
        assert keeper.change(*arguments) == 2
        assert said in keeper.err
        assert "pattern" not in keeper.err
    assert keeper.run("show", "--trust", str(keeper.folder / "secret")) == 1
    assert keeper.err.count(str(keeper.folder)) == 1
    assert "the trust store" in keeper.err


# A root that is gone, and stores beside each other.


def test_a_key_is_pinned_with_the_epoch_that_another_store_counts(keeper: Keeper) -> None:
    add = ["add", "--role", "individual", "--party", "x", "--public", STRANGER.public_hex, "--epoch"]
    for wrong in ("0", str(2**31 + 1), "two"):
        assert keeper.change(*add, wrong) == 2
        assert "--epoch" in keeper.err
    assert keeper.change(*add, "7") == 0, keeper.err
    assert "epoch 7" in keeper.out
    assert keeper.store.key_for(STRANGER.keyid, "individual").epoch == 7
    rotate = ["rotate", "--role", "individual", "--party", "x", "--public", OTHER_INDIVIDUAL.public_hex, "--epoch"]
    assert keeper.change(*rotate, "7") == 2
    assert "later epoch" in keeper.err
    assert keeper.change(*rotate, "9") == 0, keeper.err
    assert keeper.store.key_for(OTHER_INDIVIDUAL.keyid, "individual").epoch == 9
    # The epochs are shown, of those that are believed and of those that are not.
    assert keeper.run("show", "--trust", str(keeper.trust)) == 0
    rows = [line.split()[:4] for line in keeper.out.splitlines()]
    assert ["individual", "x", "9", OTHER_INDIVIDUAL.fingerprint] in rows
    assert ["individual", "x", "7", STRANGER.fingerprint] in rows
    assert sum("epoch" in line.split() for line in keeper.out.splitlines()) == 2


def take_over(keeper: Keeper, root: str, out: Path, key: str = "root-2.key", *more: str) -> int:
    options = ["--root-key", str(keeper.folder / key), "--key-file", str(keeper.folder / "secret")]
    return keeper.run("init", *options, "--from", str(keeper.trust), "--root", root, "--out", str(out), *more)


def test_a_new_root_takes_over_keys_epochs_revocations_and_the_count(keeper: Keeper) -> None:
    rotate = ["rotate", "--party", "collective", "--role", "collective", "--public", STRANGER.public_hex]
    assert keeper.change(*rotate) == 0
    assert keeper.change("revoke", "individual-1", "--reason", "compromised") == 0
    old, out = keeper.store, keeper.folder / "trust-2.json"
    assert take_over(keeper, ROOT.public_hex.upper(), out) == 0, keeper.err
    assert SECOND_ROOT.fingerprint in keeper.out
    new = read_trust(out, root=SECOND_ROOT.public_hex)
    assert (new.keys, new.revoked, new.version) == (old.keys, old.revoked, old.version + 1)
    assert new.only("collective").epoch == 2
    assert new.is_compromised(INDIVIDUAL.keyid)
    # Nothing leads to it from the old root, whose key may be a thief's.
    assert (new.root, new.handovers) == (SECOND_ROOT.public_hex, ())
    assert keeper.store == old
    assert take_over(keeper, ROOT.public_hex, out) == 2
    assert "not overwritten" in keeper.err


def test_attack_forged_store_is_not_taken_over(keeper: Keeper) -> None:
    """Whoever swaps the old file before the new root takes over: the root that the nodes pin tells it."""
    out = keeper.folder / "trust-2.json"
    assert take_over(keeper, STRANGER.public_hex, out) == 1
    assert "nothing leads to it" in keeper.err
    options = ["--root-key", str(keeper.folder / "root-2.key"), "--key-file", str(keeper.folder / "secret")]
    for wrong in (["--from", str(keeper.trust)], ["--root", ROOT.public_hex]):
        assert keeper.run("init", *options, *wrong, "--out", str(out)) == 2
        assert "--from goes with --root" in keeper.err
    # A root that the old store has had is no new one.
    assert take_over(keeper, ROOT.public_hex, out, "root.key") == 2
    assert "keygen" in keeper.err
    assert not out.exists()
    assert take_over(keeper, ROOT.public_hex, out) == 0


def test_the_last_version_says_the_way_out(keeper: Keeper) -> None:
    """Whoever stole the root can use the numbers up; it is one line, not a crash."""
    fields = {name: getattr(keeper.store, name) for name in TrustStore.model_fields}
    write_trust(keeper.trust, TrustStore.model_validate(fields | {"version": 2**31}), ROOT)
    assert keeper.change("renew") == 2
    assert "trust init --from" in keeper.err


def test_show_says_who_is_believed_and_what_that_rests_on(keeper: Keeper) -> None:
    assert keeper.change("revoke", "individual-1", "--reason", "retired") == 0
    assert keeper.run("show", "--trust", str(keeper.trust)) == 0
    rows = [line.split() for line in keeper.out.splitlines()]
    assert ["collective", "collective", "1", COLLECTIVE.fingerprint, COLLECTIVE.keyid[:16]] in rows
    gone = ["individual", "individual-1", "1", INDIVIDUAL.fingerprint, INDIVIDUAL.keyid[:16], "retired,", "version"]
    assert [*gone, "4"] in rows
    assert ROOT.fingerprint in keeper.out
    assert "NOT VERIFIED" in keeper.out
    assert keeper.run("show", "--trust", str(keeper.trust), "--root", ROOT.public_hex.upper()) == 0
    assert "NOT VERIFIED" not in keeper.out
    assert "vouches" in keeper.out


def test_show_refuses_a_store_of_another_root(keeper: Keeper) -> None:
    assert keeper.run("show", "--trust", str(keeper.trust), "--root", SECOND_ROOT.public_hex) == 1
    assert keeper.out == ""
    assert keeper.run("show", "--trust", str(keeper.trust), "--root", "00") == 2
    assert keeper.run("show", "--trust", str(keeper.folder / "gone")) == 2


@pytest.mark.parametrize("pinned", [True, False])
def test_show_for_programs(keeper: Keeper, pinned: bool) -> None:
    assert keeper.change("revoke", "individual-1", "--reason", "retired") == 0
    root = ["--root", ROOT.public_hex] if pinned else []
    assert keeper.run("show", "--trust", str(keeper.trust), "--json", *root) == 0
    shown = json.loads(keeper.out)
    assert shown["root"] == {"public": ROOT.public_hex, "fingerprint": ROOT.fingerprint, "pinned": pinned}
    assert shown["keys"] == [
        {
            "role": "collective",
            "party": "collective",
            "epoch": 1,
            "public": COLLECTIVE.public_hex,
            "keyid": COLLECTIVE.keyid,
            "fingerprint": COLLECTIVE.fingerprint,
        }
    ]
    assert [(key["keyid"], key["reason"]) for key in shown["revoked"]] == [(INDIVIDUAL.keyid, "retired")]
    assert (shown["version"], shown["expired"]) == (4, False)


def test_show_warns_of_an_expired_store(keeper: Keeper) -> None:
    write_trust(keeper.trust, keeper.store.with_expiry(1), ROOT)
    assert keeper.run("show", "--trust", str(keeper.trust)) == 0
    assert "past its time" in keeper.err
    assert keeper.run("show", "--trust", str(keeper.trust), "--json") == 0
    assert json.loads(keeper.out)["expired"] is True


@pytest.mark.parametrize("command", ["init", "add", "revoke", "rotate", "renew", "show"])
def test_help_has_an_example_that_parses(keeper: Keeper, command: str) -> None:
    """Every option of the example is one of the command's, and every required one is there."""
    assert keeper.run(command, "--help") == 0
    examples = re.findall(rf"learngene trust {command} (.+)", keeper.out)
    assert examples
    app = make_app("A test.")
    trust_commands.register(app)
    group = typer.main.get_command(app)
    context = group.make_context("learngene", ["trust", command], resilient_parsing=True)
    trust = group.get_command(context, "trust")  # type: ignore[attr-defined]
    found = trust.get_command(context, command)
    for example in examples:
        found.make_context(command, example.split())
