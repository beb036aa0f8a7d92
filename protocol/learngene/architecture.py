"""The architecture of a learngene: an ordered list of blocks, and from it the name and shape of every tensor."""

import math
from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise
from typing import Literal, NamedTuple, get_args

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    SerializerFunctionWrapHandler,
    model_serializer,
    model_validator,
)

from protocol.encoding.blob import MAX_TENSORS, Dtype

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
#: Forms that may have smaller sizes.
SizedForm = Literal["condensed", "direct"]
SIZED_FORMS: tuple[SizedForm, ...] = get_args(SizedForm)
#: A smaller size: the share of every block's channels that it has, the first ones; a shallow one leaves blocks out too
#: (:func:`sized_blocks`).
SizeName = Literal[
    "x0.125",
    "x0.25",
    "x0.35",
    "x0.5",
    "x0.6",
    "x0.7",
    "x0.85",
    "x0.125-shallow",
    "x0.25-shallow",
    "x0.35-shallow",
    "x0.5-shallow",
    "x0.6-shallow",
    "x0.7-shallow",
    "x0.85-shallow",
    "x1-shallow",
]
#: A size to descend to; ``full``: the whole learngene.
Size = Literal["full"] | SizeName
FULL: Literal["full"] = "full"
MOST_SIZES = 7
#: Convolutions of a smaller size: the first channels of the whole's, or weights of its own.
SizeWeights = Literal["nested", "own"]

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


def sized_blocks(blocks: Sequence[Block], size: SizeName) -> dict[int, Block]:
    """The blocks of a smaller size, by their number (from 0) in the whole.

    Each has the first channels of the whole's block, at least one; the image's channels stay. A shallow size has no
    block that neither changes the number of channels nor pools, but the last of each role.
    """
    width, _, depth = size.removeprefix("x").partition("-")
    thousandths = round(1000 * float(width))
    roles = [block.role for block in blocks]
    chosen: dict[int, Block] = {}
    before = blocks[0].in_channels
    for number, block in enumerate(blocks):
        changes = block.pool or block.in_channels != block.out_channels
        if depth and not changes and roles[number] == next(iter(roles[number + 1 :]), None):
            continue
        after = max(1, block.out_channels * thousandths // 1000)
        chosen[number] = block.model_copy(update={"in_channels": before, "out_channels": after})
        before = after
    return chosen


def weights_of(blocks: Iterable[Block]) -> int:
    """Number of weights of blocks, without running statistics."""
    shapes = (block.tensors() for block in blocks)
    return sum(math.prod(shape) for named in shapes for name, shape in named.items() if name not in BLOCK_STATISTICS)


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
        sizes: smaller networks that an individual may take instead, smallest first. Each has BatchNorms of its own
            (``size.<number>.block.<i>.norm.<name>``): statistics of fewer channels are other ones (Yu et al. 2019,
            *Slimmable neural networks*).
        size_weights: whether their convolutions are the first channels of the whole's, or their own
            (``size.<number>.block.<i>.conv.weight``).
    """

    model_config = _FROZEN

    form: Form
    input: InputContract
    blocks: tuple[Block, ...] = Field(min_length=1, max_length=MOST_BLOCKS)
    dtype: Dtype = "float32"
    sizes: tuple[SizeName, ...] = Field((), max_length=MOST_SIZES)
    size_weights: SizeWeights = "nested"

    @model_serializer(mode="wrap")
    def _without_defaults(self, handler: SerializerFunctionWrapHandler) -> dict[str, object]:
        value: dict[str, object] = handler(self)
        fields = Architecture.model_fields
        return {name: said for name, said in value.items() if getattr(self, name) != fields[name].default}

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

    @model_validator(mode="after")
    def _sizes_fit(self) -> "Architecture":
        if not self.sizes:
            if self.size_weights != "nested":
                raise ValueError("weights of its own need a size")
            return self
        if self.form not in SIZED_FORMS or any(block.norm != "batch" for block in self.blocks):
            raise ValueError(f"sizes need one of the forms {', '.join(SIZED_FORMS)}, and BatchNorm")
        counts = [*(weights_of(sized_blocks(self.blocks, size).values()) for size in self.sizes), self.parameters]
        if any(before >= after for before, after in pairwise(counts)):
            raise ValueError(
                f"sizes must grow in weights, and the whole be the largest; {', '.join(self.sizes)} and the whole have "
                f"{', '.join(str(count) for count in counts)}"
            )
        tensors = len(self.stored(fisher=True))
        if tensors > MAX_TENSORS:
            raise ValueError(f"{tensors} tensors with {len(self.sizes)} sizes; a blob holds at most {MAX_TENSORS}")
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
        for number, size in enumerate(self.sizes):
            for index, block in sized_blocks(self.blocks, size).items():
                for name, shape in block.tensors().items():
                    if name != "conv.weight" or self.size_weights == "own":
                        role: TensorRole = "statistic" if name in BLOCK_STATISTICS else "weight"
                        allowed[f"size.{number}.block.{index}.{name}"] = (role, shape)
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
        """Number of weights of the whole, without running statistics, Fisher diagonals and smaller sizes."""
        return weights_of(self.blocks)

    def of_size(self, size: Size) -> "Architecture":
        """The architecture of one size by itself."""
        blocks = self.blocks if size == FULL else tuple(sized_blocks(self.blocks, size).values())
        return Architecture(form=self.form, input=self.input, blocks=blocks, dtype=self.dtype)

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
