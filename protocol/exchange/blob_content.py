"""The content of an opened blob: the check that it holds exactly the tensors that the architecture allows, with usable
values.
"""

from collections.abc import Mapping
from types import MappingProxyType

import numpy as np
from numpy.typing import NDArray

from protocol.errors import NonFiniteError
from protocol.learngene import storage
from protocol.learngene.architecture import Architecture
from protocol.learngene.learngene import Learngene
from protocol.messages.payloads import Release

# IEEE 754: the bits of +infinity as a 32-bit unsigned integer.
_INFINITY_BITS = 0x7F80_0000


def read_learngene(release: Release, plaintext: bytes) -> Learngene:
    """Read a plaintext: its header by our own parser, the architecture's allow-list of tensors, their values as they
    are in float32."""
    tensors = storage.decode(release.architecture, plaintext, fisher=release.fisher is not None)
    check_values(release.architecture, tensors)
    return Learngene(release.architecture, MappingProxyType(tensors), release.fisher, release.dp)


def check_values(architecture: Architecture, tensors: Mapping[str, NDArray[np.float32]]) -> None:
    """Refuse values that no correct computation gives: a network with such values would answer NaN.

    Raises:
        NonFiniteError: NaN or infinity, a negative Fisher entry or variance, a standard deviation that is not positive.
    """
    for name, (role, _) in architecture.tensors(fisher=any(name.startswith("fisher.") for name in tensors)).items():
        array = tensors[name]
        if role == "fisher" or name.endswith(".running_var"):
            # One pass: as an unsigned integer, a float that is finite and not negative lies below infinity.
            if array.view(np.uint32).max() >= _INFINITY_BITS:
                _check_finite(name, array)
                if array.min() < 0:
                    raise NonFiniteError(f"the tensor {name} holds a negative value")
            continue
        # One fast pass: a sum of squares is finite only if every value is. If the sum is not finite, each value is
        # checked, because large finite values overflow the sum too.
        with np.errstate(over="ignore", invalid="ignore"):
            squares = np.vdot(array, array)
        if not np.isfinite(squares):
            _check_finite(name, array)
        if name == "input.std" and array.min() <= 0:
            raise NonFiniteError("the tensor input.std holds a value that is not positive")


def _check_finite(name: str, array: NDArray[np.float32]) -> None:
    if not np.isfinite(array).all():
        raise NonFiniteError(f"the tensor {name} holds NaN or infinity")
