"""Options of the commands that verify and open a bundle file: by a trust store and a key."""

from pathlib import Path
from typing import Annotated

import typer

TrustOption = Annotated[
    Path | None, typer.Option(help="Trust store that pins the collective and the individual.", show_default=False)
]
RootOption = Annotated[
    str, typer.Option(help="The pinned root's public key, 64 hexadecimal digits.", show_default=False)
]
EncryptionKeyOption = Annotated[
    Path | None,
    typer.Option(help="The individual's encryption key, which opens the bundle's content.", show_default=False),
]
KeyFileOption = Annotated[
    Path | None,
    typer.Option(help="File that opens that key; without it a passphrase is asked for.", show_default=False),
]
