"""A model adapted to own pictures, and the folder that holds it: ``model.json`` and ``model.safetensors``.

The folder holds everything that its use needs: the class names, the input contract, the weights, and the learngene from
which it was adapted. Nothing is unpickled, and the protocol's own strict reader reads the tensors.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, JsonValue, ValidationError, model_validator
from torch import Tensor, nn

from individual_node.feature_head import FeatureHeadNetwork
from individual_node.reconstruction import IndividualNetwork
from individual_node.settings import MOST_SHIFTS, OwnLayers
from protocol.digest import digest_of
from protocol.encoding import blob, strict_json
from protocol.encoding.text import text_of
from protocol.errors import InputError, MalformedError, TooLargeError, fault_line
from protocol.files.atomic import write_folder_atomically
from protocol.files.user_files import check_free, read_given
from protocol.learngene.architecture import Architecture, Form, InputContract, Size
from protocol.messages.payloads import Digest, RunId
from protocol.visible_text import visible_name

DESCRIPTION, WEIGHTS = "model.json", "model.safetensors"

#: Pictures that are classified at once.
_BATCH = 256
_LARGEST_DESCRIPTION = 1 << 20
_LARGEST_WEIGHTS = 1 << 30
_LARGEST_LAYER = 1 << 16
#: Most characters of a class name.
_LONGEST_CLASS = 100
_STRICT = ConfigDict(frozen=True, extra="forbid", strict=True)


class Lineage(BaseModel):
    """The learngene from which a model was adapted: its release's digest, place in the chain, run and form, and the key
    id of the collective that signed it."""

    model_config = _STRICT

    release: Digest
    seq: int = Field(ge=1)
    run_id: RunId
    form: Form
    collective: Digest


class Estimate(BaseModel):
    """Estimate of a model's accuracy on pictures like its training pictures, from folds of these.

    Attributes:
        folds: parts into which the pictures were cut; a model trained on the others named each part.
        correct: pictures of each class that were named correctly.
    """

    model_config = _STRICT

    folds: int = Field(ge=2)
    correct: tuple[int, ...]


class Description(BaseModel):
    """``model.json``.

    Attributes:
        classes: class names in the order of the network's outputs.
        pictures: number of training pictures of each class.
        method: how it was adapted; ``network`` names the module.
        size: to which the learngene was descended.
        architecture: of the learngene at this size, with the input contract.
        own: the individual's own layers, for a network of kind ``individual`` or ``individual-head``.
        view_shifts: shifted copies that the network looks at beside each picture.
        settings, seed: settings and seed of its adaptation, for the record.
        estimate: None if there were too few pictures for one.
        weights: SHA-256 of ``model.safetensors``.
        node: configuration file (an absolute path) of the node that verified the learngene; its ledger knows whether
            the collective has withdrawn it. None: a trust store alone verified it.
        bits: that count in pictures with 16 for a grey value; None: no such picture was among the training pictures.
    """

    model_config = _STRICT

    format: Literal[1] = 1
    classes: tuple[Annotated[str, Field(min_length=1, max_length=_LONGEST_CLASS)], ...] = Field(min_length=2)
    pictures: tuple[int, ...]
    method: str = Field(max_length=64)
    network: Literal["feature-head", "individual", "individual-head"]
    learngene: Lineage
    size: Size = "full"
    architecture: Architecture
    own: OwnLayers
    view_shifts: int = Field(0, ge=0, le=MOST_SHIFTS)
    settings: dict[str, JsonValue]
    seed: int
    estimate: Estimate | None
    weights: Digest
    node: str | None = None
    bits: int | None = Field(None, ge=8, le=16)

    @model_validator(mode="after")
    def _as_many_as_classes(self) -> "Description":
        counts = [self.pictures, *([self.estimate.correct] if self.estimate else [])]
        if any(len(count) != len(self.classes) for count in counts):
            raise ValueError("the counts are not as many as the classes")
        return self

    @model_validator(mode="after")
    def _of_a_size(self) -> "Description":
        hidden = () if self.own.hidden is None else (self.own.hidden,)
        sizes = (*(self.own.front or ()), *(self.own.back or ()), *hidden)
        if not all(1 <= size <= _LARGEST_LAYER for size in sizes):
            raise ValueError(f"own layers have 1 to {_LARGEST_LAYER} channels or units")
        return self

    @property
    def input(self) -> InputContract:
        """The pictures' shape."""
        return self.architecture.input


class PictureClassifier(nn.Module):
    """From pictures to probabilities: normalisation, network, softmax, in float32.

    Args:
        network: normalised pictures ``[n, C, H, W]`` to logits ``[n, classes]``.
        mean, std: of each channel ``[C]``, of pictures in 0..1.
    """

    def __init__(self, network: nn.Module, mean: NDArray[np.float32], std: NDArray[np.float32]) -> None:
        super().__init__()
        self.network = network
        self.mean: Tensor
        self.std: Tensor
        for name, value in (("mean", mean), ("std", std)):
            self.register_buffer(name, torch.from_numpy(np.array(value)))

    def forward(self, pictures: Tensor) -> Tensor:
        """Pictures ``[n, C, H, W]`` in 0..1 to probabilities ``[n, classes]``."""
        logits: Tensor = self.network((pictures - self.mean[:, None, None]) / self.std[:, None, None])
        return logits.float().softmax(1)

    @torch.no_grad()
    def probabilities(self, pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Probability of each class, for bytes ``[N, H, W, C]`` of the input contract: float32 ``[N, classes]``."""
        unit = (part.permute(0, 3, 1, 2).float() / 255 for part in torch.from_numpy(np.array(pixels)).split(_BATCH))
        return np.concatenate([self(part.to(self.mean.device)).cpu().numpy() for part in unit])


@dataclass(frozen=True)
class AdaptedModel:
    """A usable model: its description, and its classifier on the CPU and in evaluation mode."""

    description: Description
    classifier: PictureClassifier


def save(model: AdaptedModel, folder: Path) -> None:
    """Write a model's folder (0700), all of it or nothing.

    Raises:
        InputError: ``folder`` exists, or its parent does not.
        StorageFailedError: it could not be stored durably.
    """
    check_free(folder)
    text = json.dumps(model.description.model_dump(mode="json"), indent=2, ensure_ascii=False) + "\n"
    write_folder_atomically(folder, {DESCRIPTION: text.encode(), WEIGHTS: weights_of(model.classifier)})


def load(folder: Path) -> AdaptedModel:
    """Read a model's folder.

    Raises:
        InputError: it is no such folder, or its files were changed or do not fit together.
    """
    try:
        text = read_given(folder / DESCRIPTION, "the description", max_bytes=_LARGEST_DESCRIPTION)
        data = read_given(folder / WEIGHTS, "the weights", max_bytes=_LARGEST_WEIGHTS)
    except InputError as error:
        raise InputError(f"{visible_name(folder)} is no model ({error}); `individual-node adapt` writes one") from None
    try:
        strict_json.parse(text)
        description = Description.model_validate_json(text_of(text))
    except ValidationError as error:
        raise InputError(
            f"{visible_name(folder / DESCRIPTION)} is no description of a model: {fault_line(error)}"
        ) from None
    except ValueError as error:
        raise InputError(f"{visible_name(folder / DESCRIPTION)} is no description of a model: {error}") from None
    if digest_of(data) != description.weights:
        raise InputError(f"{visible_name(folder / WEIGHTS)} is not the file that {DESCRIPTION} names; adapt again")
    try:
        return AdaptedModel(description, _classifier(description, data))
    except (MalformedError, TooLargeError, ValueError, RuntimeError, OverflowError) as error:
        raise InputError(f"{visible_name(folder / WEIGHTS)} does not fit {DESCRIPTION}: {error}; adapt again") from None


def weights_of(classifier: PictureClassifier) -> bytes:
    """The tensors of a classifier as a blob."""
    state = {name: value.cpu() for name, value in classifier.state_dict().items() if not _counts(name)}
    return blob.encode({name: value.contiguous().numpy() for name, value in state.items()})


def network_of(description: Description) -> nn.Module:
    """The module that a description names, before the model's weights are loaded."""
    architecture, ways, shifts = description.architecture, len(description.classes), description.view_shifts
    if description.network == "individual":
        return IndividualNetwork(architecture, ways=ways, own=description.own, view_shifts=shifts)
    own = None if description.network == "feature-head" else description.own
    return FeatureHeadNetwork(architecture, ways=ways, own=own, view_shifts=shifts)


def _classifier(description: Description, data: bytes) -> PictureClassifier:
    channels = np.zeros(description.input.channels, np.float32)
    tensors = blob.decode_float32(data)
    # Build it without memory first: a foreign description can ask for a network of any size.
    with torch.device("meta"):
        outline = PictureClassifier(network_of(description), channels, channels).state_dict()
    expected = {name: tuple(value.shape) for name, value in outline.items() if not _counts(name)}
    if {name: array.shape for name, array in tensors.items()} != expected:
        raise ValueError("the tensors are not those of the network")
    classifier = PictureClassifier(network_of(description), channels, channels)
    for name, array in tensors.items():
        if not np.isfinite(array).all():
            raise ValueError(f"the tensor {name} holds NaN or infinity")
    classifier.load_state_dict({name: torch.from_numpy(np.array(a)) for name, a in tensors.items()}, strict=False)
    return classifier.eval().requires_grad_(False)


def _counts(name: str) -> bool:
    """BatchNorm's count of batches: an integer that nothing reads in evaluation mode."""
    return name.endswith(".num_batches_tracked")
