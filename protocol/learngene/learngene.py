"""The learngene: an architecture and its tensors, as both parties hold it in memory."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field

from protocol.learngene.architecture import Architecture

Estimator = Literal["sampled", "exact", "empirical"]
PrivacyScope = Literal["weights-and-fisher", "fisher-given-weights"]


class FisherDescription(BaseModel):
    """How the Fisher diagonal of a learngene was estimated (Eq. 7)."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    source: Literal["collective"]
    estimator: Estimator
    samples: int = Field(ge=1, description="images; under differential privacy as many as were to be expected")
    clip_micro: int = Field(ge=0, description="largest per-sample norm in millionths; 0: not clipped")


class DifferentialPrivacy(BaseModel):
    """The guarantee under which a learngene was made: epsilon in millionths, delta = 10^-delta_exponent.

    Attributes:
        relation: which image sets count as neighbours: one image more or fewer, or one image replaced by another.
        scope: ``weights-and-fisher``: everything in the release. ``fisher-given-weights``: only the Fisher diagonal,
            given the whole network, its unpublished classifier and front layers included, and the set of named images;
            none of these carries a guarantee.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    epsilon_micro: int = Field(ge=1, le=10**12)
    delta_exponent: int = Field(ge=1, le=30)
    relation: Literal["add-or-remove", "replace"]
    scope: PrivacyScope


@dataclass(frozen=True)
class Learngene:
    """The inherited knowledge: blocks, their BatchNorm state, the Fisher diagonal and the input's normalisation.

    Attributes:
        architecture: the ordered blocks and the input contract.
        tensors: float32 arrays, named and shaped as ``architecture.tensors(fisher=fisher is not None)`` says.
        fisher: how the diagonal was estimated, or None if the learngene carries none.
        privacy: the guarantee under which all of it was made, or None if there is none.
    """

    architecture: Architecture
    tensors: Mapping[str, NDArray[np.float32]]
    fisher: FisherDescription | None
    privacy: DifferentialPrivacy | None = None

    def __post_init__(self) -> None:
        expected = self.architecture.tensors(fisher=self.fisher is not None)
        if set(self.tensors) != set(expected):
            difference = sorted(set(self.tensors) ^ set(expected))
            raise ValueError(f"tensors do not fit the architecture: {', '.join(difference[:4])}")
        for name, (_, shape) in expected.items():
            array = self.tensors[name]
            if array.dtype != np.float32 or array.shape != shape:
                raise ValueError(f"tensor {name} is {array.dtype}{array.shape}, the architecture says float32{shape}")
