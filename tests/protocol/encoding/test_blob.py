"""The blob: agreement with the safetensors library, one encoding per content, and views instead of copies."""

import json
from typing import Any, cast

import numpy as np
import pytest
import safetensors.torch
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from protocol.encoding import blob
from protocol.encoding.blob import Dtype
from protocol.errors import MalformedError, TooLargeError

Tensors = dict[str, NDArray[Any]]
SHAPES = st.lists(st.integers(1, 4), min_size=1, max_size=4).map(tuple)
NAMES = st.text("abz019_.", min_size=1, max_size=8)
SMALL: Tensors = {
    "block.0.conv.weight": np.arange(24, dtype=np.float32).reshape(2, 3, 2, 2),
    "input.mean": np.array([0.5, np.nan, -0.0], dtype=np.float32),
}


@st.composite
def tensors(draw: st.DrawFn) -> Tensors:
    shapes = draw(st.dictionaries(NAMES, SHAPES, min_size=1, max_size=6))
    rng = np.random.default_rng(draw(st.integers(0, 1000)))
    kinds = [np.float32, np.float16, np.uint16, np.int8]
    return {
        name: (30 * rng.standard_normal(shape)).astype(draw(st.sampled_from(kinds))) for name, shape in shapes.items()
    }


def dtypes_of(content: Tensors) -> dict[str, Dtype]:
    return {name: blob.dtype_of(array) for name, array in content.items()}


def with_header(header: object, data: bytes = bytes(4)) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text + data


def entry(**changes: object) -> dict[str, object]:
    return {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]} | changes


@given(tensors())
def test_round_trip(content: Tensors) -> None:
    data = blob.encode(content)
    back = blob.decode(data)
    assert back.keys() == content.keys()
    for name, array in back.items():
        np.testing.assert_array_equal(array, content[name], strict=True)
    assert blob.encode(back) == data
    assert blob.encoded_size({name: array.shape for name, array in content.items()}, dtypes_of(content)) == len(data)


@given(tensors())
def test_agrees_with_the_safetensors_library_byte_for_byte(content: Tensors) -> None:
    torch_content = {name: torch.from_numpy(array.copy()) for name, array in content.items()}
    torch_content = {n: t.view(torch.bfloat16) if t.dtype == torch.uint16 else t for n, t in torch_content.items()}
    data = blob.encode(content)
    assert data == safetensors.torch.save(torch_content)
    for name, tensor in safetensors.torch.load(data).items():
        assert tensor.dtype == torch_content[name].dtype
        assert tensor.view(torch.uint8).equal(torch_content[name].view(torch.uint8))


def test_bits_survive_whatever_they_mean() -> None:
    back = blob.decode(blob.encode(SMALL))
    assert {name: array.tobytes() for name, array in back.items()} == {n: a.tobytes() for n, a in SMALL.items()}


def test_where_float32_alone_is_allowed_no_other_dtype_is_read() -> None:
    data = blob.encode(SMALL)
    assert blob.decode_float32(data).keys() == SMALL.keys()
    for other in (np.float16, np.uint16, np.int8):
        with pytest.raises(MalformedError, match=r"input\.std"):
            blob.decode_float32(blob.encode(SMALL | {"input.std": np.ones(3, other)}))


def test_an_array_that_is_not_contiguous_is_written_in_its_logical_order() -> None:
    array = np.arange(6, dtype=np.float32).reshape(2, 3).T
    np.testing.assert_array_equal(blob.decode(blob.encode({"a": array}))["a"], array)


def test_tensors_are_read_only_views_on_the_received_bytes() -> None:
    data = blob.encode(SMALL)
    received = np.frombuffer(data, dtype=np.uint8)
    for array in blob.decode(data).values():
        assert np.shares_memory(array, received)
        with pytest.raises(ValueError, match="read-only"):
            array[...] = 0


@settings(max_examples=200)
@given(st.integers(0, 8 * len(blob.encode(SMALL)) - 1))
def test_a_flipped_bit_is_refused_or_is_a_value(position: int) -> None:
    data = bytearray(blob.encode(SMALL))
    data[position // 8] ^= 1 << position % 8
    try:
        back = blob.decode(bytes(data))
    except (MalformedError, TooLargeError):
        return
    # The header's digits and letters have one spelling, so that only a flip that still re-encodes gets here.
    assert blob.encode(back) == bytes(data)


@settings(max_examples=200)
@given(st.binary(max_size=80) | st.binary(max_size=40).map(with_header))
def test_arbitrary_bytes_never_do_worse_than_being_refused(data: bytes) -> None:
    with pytest.raises((MalformedError, TooLargeError)):
        blob.decode(data)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        bytes(7),
        bytes(8),
        (8).to_bytes(8, "little") + b"{}",
        with_header({}, b""),
        with_header({"a": entry(dtype="F64", data_offsets=[0, 8])}, bytes(8)),
        with_header({"a": entry(dtype="F16")}),
        with_header({"a": entry(dtype="f32")}),
        with_header({"a": entry(dtype=["F32"])}),
        with_header({"a": entry(dtype=32)}),
        with_header({"a": entry(dtype="F16", data_offsets=[0, 2]), "b": entry(data_offsets=[2, 6])}, bytes(6)),
        with_header({"__metadata__": {"note": "x"}, "a": entry()}),
        with_header({"a": entry(note=1)}),
        with_header({"a": entry(shape=[])}),
        with_header({"a": entry(shape=[0], data_offsets=[0, 0])}, b""),
        with_header({"a": entry(shape=[-1])}),
        with_header({"a": entry(shape=[True])}),
        with_header({"a": entry(shape=["1"])}),
        with_header({"a": entry(shape=1)}),
        with_header({"a": [1]}),
        with_header({"A": entry()}),
        with_header({"a/b": entry()}),
        with_header({"a" * 65: entry()}),
        with_header({"": entry()}),
        with_header({"a": entry(data_offsets=[4, 8])}, bytes(8)),
        with_header({"a": entry(data_offsets=[0, 8])}, bytes(8)),
        with_header({"a": entry(shape=[2**31, 2**31, 2**31])}),
        with_header({"a": entry(), "b": entry()}),
        with_header({"b": entry(), "a": entry(data_offsets=[4, 8])}, bytes(8)),
        with_header({"a": entry()}, bytes(3)),
        with_header({"a": entry()}, bytes(5)),
        with_header(b'{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},"a":{"dtype":"F32","shape":[1]}}'),
        with_header(b'{"a":{"dtype":"F32","shape":[1],"data_offsets":[0, 4]}}'),
        with_header(b'{"a":{"shape":[1],"dtype":"F32","data_offsets":[0,4]}}'),
        with_header(b'{"a":{"dtype":"F32","shape":[1.0],"data_offsets":[0,4]}}'),
        with_header(b'{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}' + b" " * 8),
    ],
)
def test_malformed(data: bytes) -> None:
    assert list(blob.decode(with_header({"a": entry()}))) == ["a"]
    with pytest.raises(MalformedError):
        blob.decode(data)


@pytest.mark.parametrize(
    "data",
    [
        (blob.MAX_HEADER_BYTES + 8).to_bytes(8, "little") + b" " * (blob.MAX_HEADER_BYTES + 8),
        b"\xff" * 16,
        with_header({f"t{i:03}": entry(data_offsets=[4 * i, 4 * i + 4]) for i in range(257)}, bytes(4 * 257)),
        with_header({"a": entry(shape=[1, 1, 1, 1, 1])}),
    ],
)
def test_too_large(data: bytes) -> None:
    with pytest.raises(TooLargeError):
        blob.decode(data)


def test_what_a_blob_cannot_hold_is_not_written() -> None:
    one = np.ones(1, np.float32)
    wrong: list[dict[str, NDArray[np.float32]]] = [
        {},
        {"A": one},
        {"a": np.ones((), np.float32)},
        {"a": np.ones((1,) * 5, np.float32)},
        {"a": np.ones(0, np.float32)},
        {"a": cast(Any, np.ones(1, np.float64))},
        {f"t{i}": one for i in range(257)},
    ]
    for content in wrong:
        with pytest.raises(ValueError, match=r"tensor|name"):
            blob.encode(content)
