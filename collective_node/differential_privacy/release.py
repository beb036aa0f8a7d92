"""The release of a private evolution: the origin of each tensor, and the stored result that is never made twice."""

import hashlib
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, ValidationError

from collective_node.differential_privacy.mechanism import Mechanism
from collective_node.settings import LATER, CollectiveSettings
from protocol.encoding import blob, strict_json
from protocol.errors import InputError, RefusedError, fault_line
from protocol.exchange.blob_content import check_values
from protocol.files import state_files
from protocol.files.atomic import write_folder_atomically
from protocol.learngene.architecture import BLOCK_PARAMETERS, Architecture, Form
from protocol.learngene.learngene import DifferentialPrivacy, FisherDescription, Learngene

#: Origin of a tensor: trained by DP-SGD; a sum with noise; or constant, whatever the images are.
Provenance = Literal["trained", "noised", "constant"]
Tensors = Mapping[str, NDArray[np.float32]]

_FOLDER, _DESCRIPTION = "private", "private.json"
_MOST_DESCRIPTION_BYTES = 1 << 20


def provenance(architecture: Architecture) -> dict[str, Provenance]:
    """The origin of every tensor of a release with private weights.

    Raises:
        ValueError: a tensor has no private origin; a running statistic is one.
    """
    found: dict[str, Provenance] = {}
    parameters = {f"block.{index}.{name}" for index in range(len(architecture.blocks)) for name in BLOCK_PARAMETERS}
    for name, (role, _) in architecture.tensors(fisher=True).items():
        if role == "weight" and name in parameters:
            found[name] = "trained"
        elif role == "fisher" and name.removeprefix("fisher.") in parameters:
            found[name] = "noised"
        elif role == "input":
            found[name] = "constant"
        else:
            raise ValueError(f"the tensor {name} would be released, and nothing makes it private")
    return found


def assembled(
    architecture: Architecture,
    sources: Mapping[Provenance, Tensors],
    fisher: FisherDescription,
    guarantee: DifferentialPrivacy,
) -> Learngene:
    """Assemble a learngene; every tensor comes from the origin that :func:`provenance` says.

    Raises:
        ValueError: a tensor has no private origin, or its origin does not hold it.
    """
    tensors = {}
    for name, origin in provenance(architecture).items():
        if name not in sources[origin]:
            raise ValueError(f"the tensor {name} is not among those that are {origin}")
        tensors[name] = sources[origin][name]
    return Learngene(architecture, tensors, fisher, guarantee)


class _Kept(BaseModel):
    """One learngene without its tensors."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    architecture: Architecture
    fisher: FisherDescription
    guarantee: DifferentialPrivacy


class _Description(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    setup: str
    mechanism: Mechanism
    accuracy: float | None
    learngenes: dict[Form, _Kept]


class Finished(BaseModel):
    """The stored result of a private evolution.

    Attributes:
        mechanism: everything that read images, and its epsilon.
        accuracy: of the condensed network on held-out images, per cent; None if there is none. Not released.
        learngenes: by form.
    """

    model_config = ConfigDict(frozen=True, arbitrary_types_allowed=True)

    mechanism: Mechanism
    accuracy: float | None
    learngenes: dict[Form, Learngene]

    def keep(self, checkpoints: Path, setup: str) -> None:
        """Store the result before any of it leaves: a second one would be a second release of the same images, and both
        epsilons would add up."""
        kept = {}
        files = {}
        for form, learngene in self.learngenes.items():
            assert learngene.fisher is not None
            assert learngene.privacy is not None
            kept[form] = _Kept(
                architecture=learngene.architecture, fisher=learngene.fisher, guarantee=learngene.privacy
            )
            files[_tensors_file(form)] = blob.encode(learngene.tensors)
        description = _Description(setup=setup, mechanism=self.mechanism, accuracy=self.accuracy, learngenes=kept)
        files[_DESCRIPTION] = description.model_dump_json().encode()
        state_files.subfolder(checkpoints.parent, checkpoints.name, "the folder of checkpoints")
        write_folder_atomically(checkpoints / _FOLDER, files)

    @classmethod
    def kept(cls, checkpoints: Path, setup: str) -> "Finished | None":
        """The result that a private evolution stored here; None if there is none.

        Raises:
            InputError: it was made with other settings or images, or cannot be read.
        """
        folder = checkpoints / _FOLDER
        if not os.path.lexists(folder):
            return None
        try:
            text = _kept_file(checkpoints, _DESCRIPTION, max_bytes=_MOST_DESCRIPTION_BYTES)
            strict_json.parse(text)
            description = _Description.model_validate_json(text)
            learngenes = {
                form: Learngene(one.architecture, _kept_tensors(checkpoints, form, one), one.fisher, one.guarantee)
                for form, one in description.learngenes.items()
            }
            for learngene in learngenes.values():
                check_values(learngene.architecture, learngene.tensors)
        except ValidationError as error:
            raise InputError(f"what was kept in {folder} cannot be read: {fault_line(error)}") from None
        except (RefusedError, ValueError) as error:
            raise InputError(f"what was kept in {folder} cannot be read: {error}") from None
        if description.setup != setup:
            raise InputError(
                f"{folder} holds a private learngene of other settings or images; a second one from the same images "
                "adds its epsilon to the first's: use another state folder only if that is meant"
            )
        return cls(mechanism=description.mechanism, accuracy=description.accuracy, learngenes=learngenes)


def setup_of(evolution: str, settings: CollectiveSettings) -> str:
    """Fingerprint of everything that a private result depends on; ``evolution``: fingerprint of images and seed."""
    as_before = {name for name, value in LATER.items() if getattr(settings, name) == value}
    left_out = {"annotator", "parts"} | as_before
    return hashlib.sha256(f"{evolution} {settings.model_dump_json(exclude=left_out)}".encode()).hexdigest()


def _kept_file(checkpoints: Path, name: str, *, max_bytes: int) -> bytes:
    path = f"{checkpoints.name}/{_FOLDER}/{name}"
    found = state_files.read(checkpoints.parent, path, "what was kept", max_bytes=max_bytes)
    if found is None:
        raise ValueError(f"there is no {name}")
    return found


def _kept_tensors(checkpoints: Path, form: Form, kept: _Kept) -> Tensors:
    """Read at most as many bytes as the architecture needs; :class:`Learngene` compares names and shapes."""
    shapes = {name: shape for name, (_, shape) in kept.architecture.tensors(fisher=True).items()}
    return blob.decode_float32(_kept_file(checkpoints, _tensors_file(form), max_bytes=blob.encoded_size(shapes)))


def _tensors_file(form: Form) -> str:
    return f"{form}.safetensors"
