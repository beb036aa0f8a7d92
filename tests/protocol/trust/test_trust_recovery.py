"""What the handbook says about roots that are gone and files of one individual, typed as it stands there."""

import re
import shlex
import shutil
from pathlib import Path

import pytest

from protocol.commands import key_commands, trust_commands
from protocol.commands.learngene import make
from protocol.errors import RollbackError, UnknownKeyError
from protocol.keys.key_file import Unlock
from protocol.keys.signing_key import SigningKey
from protocol.messages.bundle_file import read
from protocol.messages.payloads import Release
from protocol.trust.trust_file import read_trust, write_trust
from protocol.trust.trust_store import TrustStore
from tests.protocol.parties import (
    COLLECTIVE,
    CONTENT_KEY,
    NOW,
    OTHER_RUN,
    ROOT,
    STRANGER,
    TRUST,
    Site,
    learngene,
    opened,
)
from tests.two_folders import Folders, make_folders, run, succeeded

HANDBOOK = Path(__file__).parents[3] / "docs" / "deployment.md"
UNLOCK = Unlock("hkdf-sha256", b"k" * 32)


def commands(heading: str) -> list[list[str]]:
    """The words of every command in the first block of a section of the handbook."""
    section = HANDBOOK.read_text().split(f"# {heading}\n")[1]
    block = re.search(r"```bash\n(.+?)```", section, re.DOTALL)
    assert block is not None
    return [shlex.split(line) for line in block[1].splitlines()]


def type_in(lines: list[list[str]], values: dict[str, str]) -> None:
    """Run them where one stands; ``values`` for what a reader fills in."""
    for line in lines:
        words = [values.get(word, word) for word in line]
        if words[0] == "cp":
            shutil.copy(*words[1:])
        else:
            assert words.pop(0) == "learngene"
            succeeded(run(make(), *words))


@pytest.fixture
def folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Folders:
    """Three nodes; the collective has its second key. The keeper of the root works in the folder above theirs."""
    monkeypatch.setattr(trust_commands, "unlock_with", lambda key_file, purpose: UNLOCK)
    monkeypatch.setattr(key_commands, "ask_new", lambda purpose: UNLOCK)
    monkeypatch.chdir(tmp_path)
    folders = make_folders(tmp_path)
    ROOT.save(Path("root.key"), UNLOCK)
    second, path = SigningKey.generate(), folders.node(folders.collective).key
    path.unlink()
    second.save(path, Unlock.key_file(path.parent / "key.secret"))
    store = read_trust(folders.trust, root=ROOT.public_hex)
    store = store.with_rotated_key("collective", "collective", second.public_hex)
    for place in ("trust.json", *(f"{home}/trust.json" for home in ("collective", "individual-1", "individual-2"))):
        write_trust(Path(place), store, ROOT)
    return folders


def filled_in(folders: Folders) -> dict[str, str]:
    """What the reader of the handbook knows."""
    store = read_trust(Path("trust.json"), root=ROOT.public_hex)
    individual = next(key for key in store.keys if key.party == "individual-1")
    return {
        "$ROOT": ROOT.public_hex,
        "KEY_OF_COLLECTIVE": store.only("collective").public,
        "KEY_OF_INDIVIDUAL": individual.public,
        "EPOCH": str(store.only("collective").epoch),
        "individual/trust.json": str(folders.trust),
    }


def pin(folders: Folders, root: str, trust: Path) -> None:
    """What the operator of each site does."""
    for config in (folders.collective, folders.individual, folders.other):
        text = config.read_text()
        assert text.count(ROOT.public_hex) == 1
        config.write_text(text.replace(ROOT.public_hex, root))
        shutil.copy(trust, config.parent / "trust.json")


def test_after_a_lost_root_the_individuals_go_on(folders: Folders, tmp_path: Path) -> None:
    folders.publish()
    first = opened(Release, read(folders.exchange(tmp_path / "one.learngene")).release)
    assert (first.seq, first.key_epoch) == (1, 2)
    Path("root.key").unlink()
    type_in(commands("When the root key is gone"), filled_in(folders))
    root = read_trust(Path("trust-2.json"), root=None).root
    assert root != ROOT.public_hex
    pin(folders, root, Path("trust-2.json"))
    folders.publish(learngene(seed=1))
    second = opened(Release, read(folders.exchange(tmp_path / "two.learngene")).release)
    assert (second.seq, second.key_epoch) == (2, 2)
    succeeded(run(make(), "verify", tmp_path / "one.learngene", "--config", folders.individual))


def test_a_fresh_store_would_count_anew_and_the_refusal_says_so(folders: Folders, tmp_path: Path) -> None:
    """What the take-over is for, and the same with a file of one individual whose epoch was left out."""
    folders.publish()
    lines = commands("A file for each individual")
    short = [[word for word in line if word not in ("--epoch", "EPOCH")] for line in lines]
    assert short != lines
    type_in(short, filled_in(folders))
    with pytest.raises(UnknownKeyError, match=r"epoch 2, the trust store as epoch 1; .*trust add --epoch 2"):
        folders.exchange(tmp_path / "one.learngene")


def test_an_individual_with_a_file_of_its_own_inherits_and_learns_no_other_name(
    folders: Folders, tmp_path: Path
) -> None:
    folders.publish()
    type_in(commands("A file for each individual"), filled_in(folders))
    store = read_trust(folders.trust, root=ROOT.public_hex)
    assert [key.party for key in (*store.keys, *store.revoked)] == ["collective", "individual-1"]
    assert b"individual-2" not in folders.trust.read_bytes()
    assert opened(Release, read(folders.exchange(tmp_path / "one.learngene")).release).key_epoch == 2


def test_attack_a_stolen_root_uses_up_the_epochs_and_a_new_run_is_free_of_it(tmp_path: Path) -> None:
    """The thief pins a collective of its own with the last epoch, and releases something to the individual."""
    stolen = TRUST.without_key(COLLECTIVE.keyid, "retired").with_key(
        STRANGER.public_hex, "collective", "thief", epoch=2**31
    )
    here, there = Site(tmp_path / "thief"), Site(tmp_path / "individual")
    thief, victim = here.collective(STRANGER, trust=stolen), there.individual(trust=stolen)
    thief.publish(learngene(seed=1), NOW, b"t" * 32)
    victim.inherit(*thief.answer_request(victim.request("condensed", NOW, b"v" * 16), NOW), NOW)  # type: ignore[misc]
    healed: TrustStore = TRUST.taken_over(SigningKey.from_seed(b"2" * 32).public_hex, NOW + 9)
    for run_id in (here.run_id, OTHER_RUN):
        ours, theirs = Site(tmp_path / run_id, run_id), Site(there.folder, run_id)
        collective, individual = ours.collective(trust=healed), theirs.individual(trust=healed)
        collective.publish(learngene(), NOW, CONTENT_KEY)
        answer = collective.answer_request(individual.request("condensed", NOW, b"n" * 16), NOW)
        if run_id == OTHER_RUN:
            assert individual.inherit(*answer, NOW).learngene.release.key_epoch == 1
        else:
            with pytest.raises(RollbackError):
                individual.inherit(*answer, NOW)
        for ledger in (*ours.opened, *theirs.opened):
            ledger.close()
    for ledger in (*here.opened, *there.opened):
        ledger.close()
