"""The architecture of a learngene: an ordered list of blocks, and from it the name and shape of every tensor."""

import math
from collections.abc import Mapping
from typing import Literal, NamedTuple, get_args

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    SerializerFunctionWrapHandler,
    model_serializer,
    model_validator,
)

from protocol.encoding.blob import Dtype

#: Compact networks that a collective makes for individuals: ``condensed`` from all that it knows, ``direct`` from its
#: base images alone, as if it had no large network, ``direct-inherited`` as that, but its top layers started from the
#: collective's.
CompactForm = Literal["condensed", "direct", "direct-inherited"]
#: Forms that reach from the image to the features; ``whole`` is the collective's network without its classifier.
CompleteForm = Literal["condensed", "direct", "direct-inherited", "whole"]
#: ``paper``: only layers of the collective, those that its criterion chose; ``paper-middle`` and ``paper-front``:
#: equally many from the middle and the front of its network (Figure 6 b).
Form = Literal["condensed", "direct", "direct-inherited", "whole", "paper", "paper-middle", "paper-front"]
COMPACT_FORMS: tuple[CompactForm, ...] = get_args(CompactForm)
COMPLETE_FORMS: tuple[CompleteForm, ...] = get_args(CompleteForm)
#: Position of a block: in a light stem, or in the collective's own network.
BlockRole = Literal["stem", "front", "middle", "top"]
#: How a block normalises: by statistics of many images, or each image by itself (the only way that allows differential
#: privacy: arXiv 1803.08494).
Norm = Literal["batch", "group"]
#: ``scale``: what a channel's 8-bit weights are multiplied with; it is in the blob alone.
TensorRole = Literal["weight", "statistic", "fisher", "input", "scale"]

#: Parameters of one block that carry a Fisher diagonal.
BLOCK_PARAMETERS = ("conv.weight", "norm.weight", "norm.bias")
#: Running statistics of one block's BatchNorm; a GroupNorm has none.
BLOCK_STATISTICS = ("norm.running_mean", "norm.running_var")

#: dtype of convolutions' Fisher diagonals by that of the weights; vectors are always float32.
FISHER_DTYPES: Mapping[Dtype, Dtype] = {
    "float32": "float32",
    "bfloat16": "bfloat16",
    "float16": "bfloat16",
    "int8": "bfloat16",
}

#: Most groups of a GroupNorm, and fewest channels of a group.
MOST_GROUPS, FEWEST_CHANNELS = 16, 4

#: Most blocks of a learngene.
MOST_BLOCKS = 24

#: The one role that the blocks of a form may have.
_POSITIONS: dict[Form, tuple[BlockRole, ...]] = {
    "paper": ("front", "middle", "top"),
    "paper-middle": ("middle",),
    "paper-front": ("front",),
}


def form_named(word: str) -> Form | None:
    """The form of this name, None if there is none."""
    return next((form for form in get_args(Form) if form == word), None)


def compact_form(form: Form) -> CompactForm | None:
    """The same form, if it is one of the compact ones."""
    return next((compact for compact in COMPACT_FORMS if compact == form), None)


_FROZEN = ConfigDict(frozen=True, extra="forbid", strict=True)


class InputContract(BaseModel):
    """The input of a network: images of ``channels`` x ``height`` x ``width``, values 0..255 scaled to 0..1, then
    normalised with the blob's tensors ``input.mean`` and ``input.std`` (shape ``[channels]``)."""

    model_config = _FROZEN

    height: int = Field(ge=8, le=512)
    width: int = Field(ge=8, le=512)
    channels: int = Field(ge=1, le=4)


class Block(BaseModel):
    """A 3x3 convolution (padding 1, no bias), a normalisation and ReLU, then a 2x2 max-pool if ``pool`` is true."""

    model_config = _FROZEN

    role: BlockRole
    in_channels: int = Field(ge=1, le=4096)
    out_channels: int = Field(ge=1, le=4096)
    pool: bool
    norm: Norm = "batch"

    def tensors(self) -> dict[str, tuple[int, ...]]:
        """Name (inside the block) and shape of every parameter and statistic."""
        vector = (self.out_channels,)
        weight = {"conv.weight": (self.out_channels, self.in_channels, 3, 3)}
        names = ("norm.weight", "norm.bias", *(BLOCK_STATISTICS if self.norm == "batch" else ()))
        return weight | dict.fromkeys(names, vector)


def groups_of(channels: int) -> int:
    """Number of GroupNorm groups: the largest up to 16 that divides the channels and leaves at least 4 in each;
    otherwise 1. (A single channel, on a map of one position, would always be normalised to zero.)
    """
    fitting = (n for n in range(MOST_GROUPS, 1, -1) if channels % n == 0 and channels // n >= FEWEST_CHANNELS)
    return next(fitting, 1)


class StoredTensor(NamedTuple):
    """A tensor as a blob holds it."""

    role: TensorRole
    dtype: Dtype
    shape: tuple[int, ...]


def scale_of(weight: str) -> str:
    """Name of the scales of an 8-bit weight."""
    return f"scale.{weight}"


class Architecture(BaseModel):
    """Blocks from the first inherited one to the last. In the complete forms they reach from the image to the
    features: a stem, then top blocks. In the other forms all have one role, which says where the individual's own
    blocks are needed: before ``top`` blocks, after ``front`` blocks, before and after ``middle`` blocks.

    A field that has its default is left out where an architecture is written, so each has one encoding, and that of an
    architecture without the field is the one of earlier versions.

    Attributes:
        dtype: how a blob stores convolutions (:mod:`protocol.learngene.storage`).
    """

    model_config = _FROZEN

    form: Form
    input: InputContract
    blocks: tuple[Block, ...] = Field(min_length=1, max_length=MOST_BLOCKS)
    dtype: Dtype = "float32"

    @model_serializer(mode="wrap")
    def _without_defaults(self, handler: SerializerFunctionWrapHandler) -> dict[str, object]:
        value: dict[str, object] = handler(self)
        if self.dtype == "float32":
            del value["dtype"]
        return value

    @model_validator(mode="after")
    def _blocks_fit(self) -> "Architecture":
        for before, after in zip(self.blocks, self.blocks[1:], strict=False):
            if before.out_channels != after.in_channels:
                raise ValueError(f"{before.out_channels} channels meet a block that expects {after.in_channels}")
        if self.complete and self.blocks[0].in_channels != self.input.channels:
            raise ValueError(f"the first block of a {self.form} learngene must take the image's channels")
        roles = [block.role for block in self.blocks]
        if self.complete:
            if set(roles) - {"stem", "top"} or roles != sorted(roles):
                raise ValueError(f"a {self.form} learngene holds a stem and then top blocks")
        elif len(set(roles)) != 1 or roles[0] not in _POSITIONS[self.form]:
            allowed = " or ".join(_POSITIONS[self.form])
            raise ValueError(f"a learngene in the form {self.form} holds blocks of one role: {allowed}")
        if roles[0] == "front" and self.blocks[0].in_channels != self.input.channels:
            raise ValueError("the first block of a front learngene must take the image's channels")
        if min(self.input.height, self.input.width) >> sum(block.pool for block in self.blocks) == 0:
            raise ValueError("the blocks pool more often than the image can be halved")
        return self

    def tensors(self, *, fisher: bool) -> dict[str, tuple[TensorRole, tuple[int, ...]]]:
        """Every tensor of a learngene of this architecture, sorted by name, with role and shape.

        Args:
            fisher: whether it carries the Fisher diagonal of every block parameter
                (``fisher.<parameter>``, the shape of the parameter).
        """
        vector = (self.input.channels,)
        allowed: dict[str, tuple[TensorRole, tuple[int, ...]]] = {
            "input.mean": ("input", vector),
            "input.std": ("input", vector),
        }
        for index, block in enumerate(self.blocks):
            for name, shape in block.tensors().items():
                full = f"block.{index}.{name}"
                allowed[full] = ("statistic" if name in BLOCK_STATISTICS else "weight", shape)
                if fisher and name in BLOCK_PARAMETERS:
                    allowed[f"fisher.{full}"] = ("fisher", shape)
        return dict(sorted(allowed.items()))

    def stored(self, *, fisher: bool) -> dict[str, StoredTensor]:
        """The allow-list: every tensor that a blob of this architecture holds, sorted by name."""
        allowed: dict[str, StoredTensor] = {}
        for name, (role, shape) in self.tensors(fisher=fisher).items():
            vector = len(shape) == 1
            dtype = "float32" if vector else FISHER_DTYPES[self.dtype] if role == "fisher" else self.dtype
            allowed[name] = StoredTensor(role, dtype, shape)
            if dtype == "int8":
                allowed[scale_of(name)] = StoredTensor("scale", "float32", shape[:1])
        return dict(sorted(allowed.items()))

    @property
    def parameters(self) -> int:
        """Number of weights, without running statistics and Fisher diagonals."""
        shapes = (block.tensors() for block in self.blocks)
        return sum(
            math.prod(shape) for named in shapes for name, shape in named.items() if name not in BLOCK_STATISTICS
        )

    @property
    def complete(self) -> bool:
        """Whether the blocks reach from the image to the features, so that an individual needs none of its own."""
        return self.form in COMPLETE_FORMS

    @property
    def stem_blocks(self) -> int:
        """Number of blocks with the role ``stem``."""
        return sum(block.role == "stem" for block in self.blocks)

    @property
    def features(self) -> int:
        """Channels of the last block."""
        return self.blocks[-1].out_channels
