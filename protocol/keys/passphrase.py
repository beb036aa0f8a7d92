"""Asking for a passphrase: only on the terminal, not in the environment, not in an argument."""

import getpass
import os
from pathlib import Path

from protocol.errors import InputError
from protocol.keys.key_file import Unlock

#: Fewest characters of the passphrase for a new key: a thief of the file may try for years.
SHORTEST = 12


def unlock_with(key_file: Path | None, *, purpose: str) -> Unlock:
    """The secret that opens a key: the key file, or a passphrase, which is asked for if there is no key file.

    Args:
        purpose: the key's name in the question.

    Raises:
        InputError: the key file cannot be used, the passphrase is empty, or there is no terminal to ask on.
    """
    return Unlock.key_file(key_file) if key_file is not None else Unlock.passphrase(_ask(f"Passphrase of {purpose}: "))


def ask_new(purpose: str) -> Unlock:
    """A passphrase for a new key, asked for twice.

    Raises:
        InputError: it is too short, the second differs from the first, or there is no terminal to ask on.
    """
    text = _ask(f"New passphrase of {purpose} (at least {SHORTEST} characters): ")
    if len(text) < SHORTEST:
        raise InputError(f"the passphrase has {len(text)} characters; take at least {SHORTEST}, such as five words")
    if _ask("The same again: ") != text:
        raise InputError("the two passphrases differ; try again")
    return Unlock.passphrase(text)


def _ask(prompt: str) -> str:
    try:
        # getpass would fall back to an input that shows what is typed.
        os.close(os.open("/dev/tty", os.O_RDWR | os.O_NOCTTY))
    except OSError:
        raise InputError("a passphrase is asked for on a terminal, and here is none; use a key file instead") from None
    try:
        return getpass.getpass(prompt)
    except EOFError:
        raise KeyboardInterrupt from None
