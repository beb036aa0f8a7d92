"""A learngene in every dtype from end to end, and hostile blobs in each: the collective itself signs and seals them."""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
from numpy.typing import NDArray

from protocol.encoding import blob
from protocol.encoding.blob import Dtype
from protocol.errors import MalformedError, NonFiniteError, PolicyDeniedError, RefusedError
from protocol.exchange.collective_endpoint import Answer
from protocol.learngene import storage
from protocol.learngene.architecture import Architecture
from protocol.learngene.learngene import DifferentialPrivacy, Learngene
from protocol.messages import envelope, payloads
from protocol.messages.payloads import Release, TensorDescription
from tests.protocol.parties import CONTENT_KEY, NOW, Exchange, Site, architecture, learngene, opened

DTYPES: tuple[Dtype, ...] = get_args(Dtype)
WEIGHT = "block.0.conv.weight"
SCALE = f"scale.{WEIGHT}"
Held = dict[str, NDArray[Any]]


def of_dtype(dtype: Dtype) -> Architecture:
    return architecture().model_copy(update={"dtype": dtype})


def held_as(dtype: Dtype) -> Held:
    """The tensors as a blob of this dtype holds them, to be changed."""
    data = storage.encode(of_dtype(dtype), learngene().tensors)
    return {name: array.copy() for name, array in blob.decode(data).items()}


def described(found: Architecture) -> tuple[TensorDescription, ...]:
    return tuple(
        TensorDescription(name=name, role=kind.role, dtype=kind.dtype, shape=kind.shape)
        for name, kind in found.stored(fisher=True).items()
    )


def sent(exchange: Exchange, dtype: Dtype, held: Held, **in_release: object) -> Exchange:
    """A release of these very bytes, with a description that fits the dtype."""
    found = of_dtype(dtype)
    changes: dict[str, object] = {"architecture": found, "tensors": described(found)} | in_release
    return exchange.with_plaintext(blob.encode(held), CONTENT_KEY, **changes)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("private", [False, True])
def test_what_is_published_arrives_rounded_and_as_float32(tmp_path: Path, dtype: Dtype, private: bool) -> None:
    stated = DifferentialPrivacy(
        epsilon_micro=8_000_000, delta_exponent=6, relation="add-or-remove", scope="weights-and-fisher"
    )
    made = dataclasses.replace(learngene(), architecture=of_dtype(dtype), privacy=stated if private else None)
    here, there = Site(tmp_path / "collective").collective(), Site(tmp_path / "individual-1").individual()
    request = there.request("condensed", NOW, b"n" * 16)
    here.publish(made, NOW, CONTENT_KEY)
    answer = here.answer_request(request, NOW)
    assert isinstance(answer, Answer)
    there.inherit(*answer, NOW)
    found = there.learngene("condensed")
    assert found is not None
    assert found.learngene.architecture == of_dtype(dtype)
    assert found.learngene.privacy == made.privacy
    wanted = storage.decode(made.architecture, storage.encode(made.architecture, made.tensors), fisher=True)
    for name, array in wanted.items():
        np.testing.assert_array_equal(found.learngene.tensors[name], array, strict=True)
    # The same learngene again makes no second release.
    assert here.publish(made, NOW, CONTENT_KEY).seq == 1


def test_a_release_says_its_dtype_only_where_it_is_not_float32(exchange: Exchange) -> None:
    """So the releases of earlier versions, which do not know the word, go on verifying, and nobody can say one release
    in two ways."""
    release = exchange.answer.release
    body = envelope.parse(release).payload
    assert b'"architecture":{"blocks"' in body
    assert opened(Release, release).architecture.dtype == "float32"
    said = body.replace(b'],"form":"condensed","input"', b'],"dtype":"float32","form":"condensed","input"')
    assert said != body
    with pytest.raises(MalformedError, match="default"):
        payloads.decode(Release, said)
    other = said.replace(b'"dtype":"float32","form"', b'"dtype":"float16","form"')
    assert payloads.decode(Release, other).architecture.dtype == "float16"
    with pytest.raises(MalformedError, match="dtype"):
        payloads.decode(Release, said.replace(b'"dtype":"float32","form"', b'"dtype":"float64","form"'))


def _set(name: str, value: float, kind: type[Any] | None = None) -> Callable[[Held], None]:
    def change(held: Held) -> None:
        flat = held[name].reshape(-1)
        if kind is not None:
            flat = flat.view(kind)
        flat[-1] = value

    return change


_HOSTILE: tuple[tuple[Dtype, type[RefusedError], Callable[[Held], None], Callable[[Held], None]], ...] = (
    ("float16", NonFiniteError, _set(WEIGHT, 1.0), _set(WEIGHT, np.nan)),
    ("float16", NonFiniteError, _set(WEIGHT, -65504.0), _set(WEIGHT, -np.inf)),
    ("float16", NonFiniteError, _set(f"fisher.{WEIGHT}", 0x7F7F), _set(f"fisher.{WEIGHT}", 0x7F80)),
    ("float16", NonFiniteError, _set(f"fisher.{WEIGHT}", 0x0001), _set(f"fisher.{WEIGHT}", 0x8001)),
    ("bfloat16", NonFiniteError, _set(WEIGHT, 0xFF7F), _set(WEIGHT, 0xFF80)),
    ("bfloat16", NonFiniteError, _set(WEIGHT, 0x7F7F), _set(WEIGHT, 0x7FC0)),
    ("int8", MalformedError, _set(WEIGHT, -127), _set(WEIGHT, -128)),
    ("int8", NonFiniteError, _set(SCALE, 1e-30), _set(SCALE, 0.0)),
    ("int8", NonFiniteError, _set(SCALE, 1.0), _set(SCALE, -1.0)),
    ("int8", NonFiniteError, _set(SCALE, 1.0), _set(SCALE, np.nan)),
    ("int8", NonFiniteError, _set(SCALE, 1e30), _set(SCALE, np.inf)),
    ("int8", NonFiniteError, _set(SCALE, 1e36), _set(SCALE, 3e38)),
)


@pytest.mark.parametrize(("dtype", "error", "control", "attack"), _HOSTILE)
def test_attack_with_values_beside_their_dtype(
    exchange: Exchange,
    dtype: Dtype,
    error: type[RefusedError],
    control: Callable[[Held], None],
    attack: Callable[[Held], None],
) -> None:
    held = held_as(dtype)
    control(held)
    sent(exchange, dtype, held).verify()
    attack(held)
    with pytest.raises(error):
        sent(exchange, dtype, held).verify()


@pytest.mark.parametrize("dtype", DTYPES)
def test_attack_with_another_dtype_for_a_tensor(exchange: Exchange, dtype: Dtype) -> None:
    """In the blob alone, and in the release's list of tensors alone."""
    held = held_as(dtype)
    sent(exchange, dtype, held).verify()
    for name, array in held.items():
        for kind in (np.float32, np.float16, np.uint16, np.int8):
            if array.dtype == kind:
                continue
            with pytest.raises(MalformedError):
                sent(exchange, dtype, held | {name: array.astype(kind)}).verify()
        listed = [
            tensor.model_copy(update={"dtype": "float16" if tensor.dtype != "float16" else "float32"})
            if tensor.name == name
            else tensor
            for tensor in described(of_dtype(dtype))
        ]
        with pytest.raises(PolicyDeniedError):
            sent(exchange, dtype, held, tensors=tuple(listed)).verify()


def test_attack_with_bfloat16_where_float16_is_signed(exchange: Exchange) -> None:
    """Both have equally many bits, so only the header tells them apart."""
    held = held_as("float16")
    sent(exchange, "float16", held).verify()
    with pytest.raises(MalformedError):
        sent(exchange, "float16", held | {WEIGHT: held[WEIGHT].view(np.uint16)}).verify()
    # What is signed as bfloat16 is read as that: other numbers, and finite.
    sent(exchange, "bfloat16", held_as("bfloat16")).verify()


def test_attack_with_a_learngene_that_overflows_float16(tmp_path: Path) -> None:
    """It is refused before anything is signed or stored, with one line; in a wider dtype it is published."""
    here = Site(tmp_path / "collective").collective()
    tensors = {name: array.copy() for name, array in learngene().tensors.items()}
    tensors[WEIGHT][0, 0, 0, 0] = 7e4
    with pytest.raises(NonFiniteError, match="blob_dtype") as refused:
        here.publish(Learngene(of_dtype("float16"), tensors, learngene().fisher), NOW, CONTENT_KEY)
    assert "\n" not in str(refused.value)
    assert here.releases() == []
    here.publish(Learngene(of_dtype("bfloat16"), tensors, learngene().fisher), NOW, CONTENT_KEY)
    assert len(here.releases()) == 1
