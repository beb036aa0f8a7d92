"""The command ``learngene keygen``."""

from pathlib import Path
from typing import Annotated, get_args

import typer

from protocol.errors import InputError
from protocol.files.user_files import check_free
from protocol.keys import key_file as key_files
from protocol.keys.encryption_key import EncryptionKey
from protocol.keys.kem import Kem
from protocol.keys.key_file import Unlock
from protocol.keys.passphrase import ask_new
from protocol.keys.signing_key import SigningKey, fingerprint
from protocol.output import say


def register(app: typer.Typer) -> None:
    """Add the command to an application."""
    app.command()(keygen)


def keygen(
    out: Annotated[Path, typer.Option(help="File to write the private key to (encrypted, mode 0600).")],
    kind: Annotated[str, typer.Option(help="signing (a party's key, or the root key of trust) or encryption.")] = (
        "signing"
    ),
    kem: Annotated[str, typer.Option(help="Of an encryption key: x25519 or mlkem768-x25519.")] = "x25519",
    key_file: Annotated[
        Path | None,
        typer.Option(help="File that opens the key, made if there is none; without it a passphrase is asked for."),
    ] = None,
) -> None:
    """Make a private key and print its public half."""
    if kind not in ("signing", "encryption"):
        raise InputError(f"--kind must be signing or encryption, not {kind!r}")
    encapsulation = kem_named(kem)
    if kind == "signing" and encapsulation != "x25519":
        raise InputError("--kem is a choice for an encryption key; add --kind encryption")
    # Check before asking for a passphrase.
    check_free(out)
    unlock = _unlock(key_file, out)
    if kind == "signing":
        signing = SigningKey.generate()
        signing.save(out, unlock)
        say(f"public key     {signing.public_hex}")
        say(f"fingerprint    {signing.fingerprint}")
    else:
        encryption = EncryptionKey.generate(encapsulation)
        encryption.save(out, unlock)
        say(f"fingerprint    {fingerprint(encryption.public)}")


def kem_named(word: str) -> Kem:
    """The key encapsulation of that name.

    Raises:
        InputError: there is none.
    """
    kems: tuple[Kem, ...] = get_args(Kem)
    for kem in kems:
        if word == kem:
            return kem
    raise InputError(f"{word!r} is no key encapsulation; there are: {', '.join(kems)}")


def _unlock(key_file: Path | None, out: Path) -> Unlock:
    if key_file is None:
        return ask_new(out.name)
    if not key_file.exists() and not key_file.is_symlink():
        key_files.make_key_file(key_file)
        say(f"key file       {key_file} (new; without it the key is lost)")
    return Unlock.key_file(key_file)
