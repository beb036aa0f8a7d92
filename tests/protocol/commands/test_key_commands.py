"""``learngene keygen``: what it writes, what it prints, and what it refuses before it writes anything."""

from pathlib import Path

import pytest

from protocol.commands import key_commands
from protocol.commands.terminal import make_app, run_app
from protocol.keys import signing_key
from protocol.keys.encryption_key import EncryptionKey
from protocol.keys.key_file import Unlock
from protocol.keys.signing_key import SigningKey, read_fingerprint

PASSPHRASE = Unlock.passphrase("five words make a passphrase")


def run(*arguments: str) -> int:
    app = make_app("For a test.")
    key_commands.register(app)
    with pytest.raises(SystemExit) as ended:
        run_app(app, ["keygen", *arguments])
    assert isinstance(ended.value.code, int)
    return ended.value.code


def printed(capsys: pytest.CaptureFixture[str]) -> dict[str, str]:
    """By the label at the line's start."""
    lines = (line.partition("  ") for line in capsys.readouterr().out.splitlines())
    return {label: value.strip() for label, _, value in lines}


def test_a_key_file_is_made_and_used_again(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    secret = tmp_path / "key.secret"
    for name, made in (("one.key", True), ("two.key", False)):
        assert run("--out", str(tmp_path / name), "--key-file", str(secret)) == 0
        said = printed(capsys)
        key = SigningKey.load(tmp_path / name, Unlock.key_file(secret))
        assert said["public key"] == key.public_hex
        assert read_fingerprint(said["fingerprint"]) == key.fingerprint
        assert ("key file" in said) == made


def test_without_a_key_file_a_passphrase_is_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    asked: list[str] = []

    def ask(purpose: str) -> Unlock:
        asked.append(purpose)
        return PASSPHRASE

    monkeypatch.setattr(key_commands, "ask_new", ask)
    assert run("--out", str(tmp_path / "root.key")) == 0
    assert asked == ["root.key"]
    assert printed(capsys)["public key"] == SigningKey.load(tmp_path / "root.key", PASSPHRASE).public_hex
    # A name that is taken is refused before anybody thinks of a passphrase.
    assert run("--out", str(tmp_path / "root.key")) == 2
    assert run("--out", str(tmp_path / "none" / "root.key")) == 2
    assert asked == ["root.key"]


@pytest.mark.parametrize("kem", ["x25519", "mlkem768-x25519"])
def test_an_encryption_key_is_made(tmp_path: Path, capsys: pytest.CaptureFixture[str], kem: str) -> None:
    out, secret = tmp_path / "encryption.key", tmp_path / "key.secret"
    assert run("--out", str(out), "--kind", "encryption", "--kem", kem, "--key-file", str(secret)) == 0
    key = EncryptionKey.load(out, Unlock.key_file(secret))
    assert key.kem == kem
    assert printed(capsys)["fingerprint"] == signing_key.fingerprint(key.public)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--kind", "rsa"], "signing or encryption"),
        (["--kind", "encryption", "--kem", "rsa"], "mlkem768-x25519"),
        (["--kem", "mlkem768-x25519"], "--kind encryption"),
    ],
)
def test_wrong_choices_write_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], said: str
) -> None:
    assert run("--out", str(tmp_path / "key"), "--key-file", str(tmp_path / "key.secret"), *arguments) == 2
    error = capsys.readouterr().err
    assert said in error
    assert error.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_an_open_key_file_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "key.secret").write_bytes(bytes(range(32)))
    (tmp_path / "key.secret").chmod(0o644)
    assert run("--out", str(tmp_path / "key"), "--key-file", str(tmp_path / "key.secret")) == 2
    assert "chmod 600" in capsys.readouterr().err
    assert not (tmp_path / "key").exists()
