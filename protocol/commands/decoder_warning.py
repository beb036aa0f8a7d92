"""The warning if the operating system did not confine the program that decodes pictures."""

from protocol.output import warn
from protocol.pictures.reader import PictureReader


def warn_unconfined(reader: PictureReader) -> None:
    """Warn on standard error, in one line, if this reader's pictures were decoded without confinement."""
    if not reader.confined:
        warn(
            "this kernel does not confine the program that decoded the pictures (docs/confinement.md); name only "
            "pictures whose origin you trust"
        )
