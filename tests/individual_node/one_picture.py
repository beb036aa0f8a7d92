"""One picture, read by a decoder of its own."""

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from protocol.learngene.architecture import InputContract
from protocol.pictures.reader import PictureReader


def read_picture(file: Path, contract: InputContract) -> NDArray[np.uint8]:
    """The picture as uint8 ``[H, W, C]``; errors as of :class:`PictureReader`."""
    with PictureReader(1) as reader:
        return reader.read(file, contract)
