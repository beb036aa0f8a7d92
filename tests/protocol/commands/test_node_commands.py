"""``init`` and ``start``: a folder that others cannot read, keys that open, and one line for everything wrong."""

import errno
import os
import stat
import subprocess
import sys
from pathlib import Path
from typing import Literal

import pytest

from protocol.commands import init_command
from protocol.commands.init_command import initialise
from protocol.commands.node_commands import node_app
from protocol.commands.terminal import run_app
from protocol.errors import InputError
from protocol.keys.key_file import Unlock
from protocol.keys.signing_key import SigningKey
from protocol.node.configuration import NodeConfiguration, load
from protocol.node.load_keys import load_keys
from tests.protocol.made_node import make_node

ROOT = SigningKey.from_seed(b"r" * 32).public_hex
PASSPHRASE = Unlock.passphrase("five words make a passphrase")


def init(role: Literal["collective", "individual"], *arguments: str) -> int:
    app = node_app(role, "protocol.node.configuration:NodeConfiguration", "nowhere:make")
    with pytest.raises(SystemExit) as ended:
        run_app(app, ["init", *arguments])
    assert isinstance(ended.value.code, int)
    return ended.value.code


@pytest.mark.parametrize("role", ["collective", "individual"])
def test_init_makes_a_node_that_others_cannot_read(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], role: Literal["collective", "individual"]
) -> None:
    out, party = tmp_path / "node", f"{role}-9"
    given = ["--out", str(out), "--data", str(tmp_path), "--party", party, "--run-id", "ab" * 16, "--root", ROOT]
    assert init(role, *given) == 0
    printed = capsys.readouterr().out
    node = load(out / "config.toml", NodeConfiguration, None).node
    assert (node.party, node.run_id, node.data, node.root) == (party, "ab" * 16, tmp_path, ROOT)
    assert not node.unconfined
    assert stat.S_IMODE(out.stat().st_mode) == 0o700
    files = {"config.toml", "signing.key", "key.secret", "socket.secret"}
    assert {path.name for path in out.iterdir()} == files | ({"encryption.key"} if role == "individual" else set())
    for path in out.iterdir():
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
    keys = load_keys(node)
    assert (keys.encryption is None) == (role == "collective")
    # What whoever keeps the root key types.
    command = next(line for line in printed.splitlines() if line.startswith("learngene trust add "))
    words = command.split()
    options = dict(zip(words[3::2], words[4::2], strict=True))
    assert (options["--role"], options["--party"]) == (role, party)
    assert options["--public"] == keys.signing.public_hex
    # The fingerprint takes another way than the command: together they would prove nothing.
    assert keys.signing.fingerprint in printed
    assert keys.signing.fingerprint not in command
    assert {"--root-key", "--trust"} <= set(options)
    assert str(out / "key.secret") in printed
    # A second time: refused, and nothing changes.
    before = {path: path.read_bytes() for path in out.iterdir()}
    with pytest.raises(InputError, match="exists already"):
        initialise(out, role=role, data=tmp_path, party=party, root=ROOT)
    assert {path: path.read_bytes() for path in out.iterdir()} == before


def test_init_asks_for_a_passphrase_instead_of_a_key_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(init_command, "ask_new", lambda party: PASSPHRASE)
    out = tmp_path / "node"
    given = ["--out", str(out), "--data", str(tmp_path), "--root", ROOT, "--passphrase", "--kem", "mlkem768-x25519"]
    assert init("individual", *given) == 0
    node = load(out / "config.toml", NodeConfiguration, None).node
    assert node.key_file is None
    assert not (out / "key.secret").exists()
    assert "key.secret" not in capsys.readouterr().out
    monkeypatch.setattr("protocol.node.load_keys.unlock_with", lambda key_file, purpose: PASSPHRASE)
    keys = load_keys(node)
    assert keys.encryption is not None
    assert keys.encryption.kem == "mlkem768-x25519"
    monkeypatch.setattr("protocol.node.load_keys.unlock_with", lambda key_file, purpose: Unlock.passphrase("wrong"))
    with pytest.raises(InputError, match=r"encryption\.key does not open"):
        load_keys(node)


def test_a_passphrase_is_the_last_thing_that_init_asks_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(init_command, "ask_new", None)
    given = ["--out", str(tmp_path / "node"), "--passphrase"]
    assert init("individual", *given, "--data", str(tmp_path / "none"), "--root", ROOT) == 2
    assert init("individual", *given, "--data", str(tmp_path), "--root", "ab") == 2
    assert init("individual", *given, "--data", str(tmp_path), "--root", ROOT, "--kem", "rsa") == 2


def test_a_moved_key_file_opens_the_node(tmp_path: Path) -> None:
    made = initialise(tmp_path / "node", role="individual", data=tmp_path, party="individual-1", root=ROOT)
    configuration, stick = tmp_path / "node" / "config.toml", tmp_path / "stick"
    stick.mkdir()
    (tmp_path / "node" / "key.secret").rename(stick / "key.secret")
    with pytest.raises(InputError, match=r"cannot read the key file .*key\.secret"):
        load_keys(load(configuration, NodeConfiguration, None).node)
    text = configuration.read_text().replace('key_file = "key.secret"', f'key_file = "{stick}/key.secret"')
    configuration.write_text(text)
    keys = load_keys(load(configuration, NodeConfiguration, None).node)
    assert keys.signing.keyid == made.signing.keyid
    assert keys.encryption is not None
    assert made.encryption is not None
    assert keys.encryption.public == made.encryption.public


@pytest.mark.parametrize(
    ("party", "run_id", "root"),
    [
        ("Ada Lovelace", "", ROOT),
        ("", "", ROOT),
        ("../x", "", ROOT),
        ("individual-1", "xyz", ROOT),
        ("individual-1", "AB" * 16, ROOT),
        ("individual-1", "", ""),
        ("individual-1", "", "ab" * 31),
        ("individual-1", "", "00" * 32),
        ("individual-1", "", "none"),
    ],
)
def test_init_refuses_wrong_values(tmp_path: Path, party: str, run_id: str, root: str) -> None:
    with pytest.raises(InputError):
        initialise(tmp_path / "node", role="individual", data=tmp_path, party=party, run_id=run_id, root=root)
    assert not (tmp_path / "node").exists()


@pytest.mark.parametrize(
    ("option", "value", "said"),
    [
        ("--root", "zz", "--root has 64 hexadecimal digits"),
        ("--root", "root.key", "--root has 64 hexadecimal digits"),
        ("--root", "00" * 32, "--root: the public key is of small order"),
        ("--party", "Bad Name", "--party must be letters a-z"),
        ("--run-id", "00", "--run-id has 32 hexadecimal digits"),
    ],
)
def test_init_names_the_option_that_is_wrong_and_what_to_do(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], option: str, value: str, said: str
) -> None:
    given = {"--out": str(tmp_path / "node"), "--data": str(tmp_path), "--root": ROOT, option: value}
    assert init("individual", *(word for pair in given.items() for word in pair)) == 2
    error = capsys.readouterr().err
    assert said in error
    assert error.count("\n") == 1
    assert "config.toml" not in error
    assert "pattern" not in error
    assert not (tmp_path / "node").exists()


def test_only_an_individual_chooses_its_encryption_key(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    given = ["--data", str(tmp_path), "--root", ROOT, "--kem", "mlkem768-x25519"]
    assert init("collective", "--out", str(tmp_path / "collective"), *given) == 2
    assert "--kem" in capsys.readouterr().err
    assert not (tmp_path / "collective").exists()
    for role in ("collective", "individual"):
        assert init(role, "--help") == 0
        assert ("--kem" in capsys.readouterr().out) == (role == "individual")
    assert init("individual", "--out", str(tmp_path / "individual"), *given) == 0


@pytest.mark.parametrize("role", ["collective", "individual"])
def test_a_node_without_its_configuration_is_one_line_and_code_2(role: str, tmp_path: Path) -> None:
    command = [sys.executable, "-m", f"{role}_node", "start", "--config", str(tmp_path / "none.toml")]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ}, check=False)
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert "none.toml" in done.stderr


@pytest.mark.parametrize("role", ["collective", "individual"])
@pytest.mark.parametrize(
    ("before", "after", "said"),
    [
        ("[node]", "[node", "not a TOML file"),
        ("[node]", "[node]\nsead = 1", "node.sead"),
        ('device = "auto"', 'device = "abacus"', "node.device"),
        ('data = "', 'data = "/no/such/folder', "there is no folder /no/such/folder"),
        ('\nkey = "signing.key"', '\nkey = "none.key"', "none.key"),
        ('key_file = "key.secret"', 'key_file = "socket.secret"', "signing.key does not open"),
        ('key_file = "key.secret"', 'key_file = "none"', "here is none; use a key file"),
        ("unconfined = false", "unconfined = true\n[ROLE]\nnonsense = 1", "ROLE.nonsense"),
    ],
)
def test_a_node_with_a_wrong_configuration_is_one_line_and_code_2(
    role: Literal["collective", "individual"], before: str, after: str, said: str, tmp_path: Path
) -> None:
    node, data = tmp_path / "node", tmp_path / "data"
    data.mkdir()
    make_node(node, role, data)
    text = (node / "config.toml").read_text(encoding="utf-8").replace("unconfined = false", "unconfined = true")
    before = before.replace("unconfined = false", "unconfined = true")
    assert text.count(before) == 1
    (node / "config.toml").write_text(text.replace(before, after.replace("ROLE", role)), encoding="utf-8")
    if role == "individual" and said.startswith("signing.key"):
        said = "encryption.key does not open"
    command = [sys.executable, "-m", f"{role}_node", "start", "--config", str(node / "config.toml")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, start_new_session=True, check=False)
    assert done.returncode == 2
    assert said.replace("ROLE", role) in done.stderr
    assert done.stderr.count("\n") == 1
    assert not (node / "node.sock").exists()


@pytest.mark.parametrize("role", ["collective", "individual"])
def test_a_disk_that_fills_at_any_moment_of_init_leaves_nothing(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    role: Literal["collective", "individual"],
) -> None:
    given = ["--data", str(tmp_path), "--party", role, "--root", ROOT]
    synchronise = os.fsync
    left = 0

    def fill(descriptor: int) -> None:
        nonlocal left
        left -= 1
        if left < 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        synchronise(descriptor)

    codes = []
    for room in range(20):
        with monkeypatch.context() as patch:
            patch.setattr(os, "fsync", fill)
            left, folder = room, tmp_path / str(room)
            codes.append(init(role, "--out", str(folder), *given))
        said = capsys.readouterr().err
        if codes[-1] == 0:
            break
        # The last one: what could not be made durable is there all the same.
        assert said.count("\n") == 1
        assert not folder.exists() or (folder / "config.toml").exists()
    assert codes[-1] == 0
    assert set(codes[:-1]) == {1}
    assert len(codes) > 3


@pytest.mark.parametrize("name", ["signing.key", "key.secret", "socket.secret"])
def test_init_overwrites_no_key_and_makes_nothing_beside_one(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    out = tmp_path / "node"
    out.mkdir(mode=0o700)
    (out / name).write_text("mine")
    assert init("individual", "--out", str(out), "--data", str(tmp_path), "--party", "p", "--root", ROOT) == 2
    assert str(out / name) in capsys.readouterr().err
    assert [(path.name, path.read_text()) for path in out.iterdir()] == [(name, "mine")]


@pytest.mark.parametrize("end", ["typed", "interrupted"])
def test_an_init_that_waits_for_a_passphrase_takes_nothing_of_one_that_ends_meanwhile(tmp_path: Path, end: str) -> None:
    given = {"role": "individual", "data": tmp_path, "party": "individual-1", "root": ROOT}
    before: dict[str, bytes] = {}

    def ask() -> Unlock:
        initialise(tmp_path / "node", **given)
        before.update(content(tmp_path / "node"))
        if end == "interrupted":
            raise KeyboardInterrupt
        return PASSPHRASE

    with pytest.raises((InputError, KeyboardInterrupt)):
        initialise(tmp_path / "node", passphrase=ask, **given)
    assert before
    assert content(tmp_path / "node") == before


def content(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}
