"""The option of every command that reads own pictures."""

from typing import Annotated

import typer

from protocol.pictures.formats import BITS

#: The bits of a grey value that count, where a file does not say it.
BitsOption = Annotated[
    int | None,
    typer.Option(
        "--bits",
        help="Bits that count in pictures with 16 for a grey value: 12 for most cameras; such a file does not say it.",
        min=BITS[0],
        max=BITS[-1],
        show_default="the model's, or asked for",
    ),
]
