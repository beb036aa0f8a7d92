"""Ways in which a collective's node that was taken over could hide its data in an answer."""

import numpy as np

from protocol.encoding import blob as blobs
from protocol.encoding.canonical_json import Value
from protocol.transport.frame import Frame
from sims.boundary.acts.expectation import Open
from sims.boundary.leaks.leak import (
    FISHER,
    Honest,
    Leak,
    altered,
    field_of,
    fields,
    message_refused,
    opened_blob,
    part_of,
    released,
    tensors_of,
    with_bundle,
    with_tensor,
)

_CLASSIFIER = "classifier.2.weight"


def _bits_of_a_weight(honest: Honest, data: bytes) -> Frame:
    # The lowest byte of a float32 is far below what any training settles.
    tensors = tensors_of(honest)
    weights = tensors["block.1.conv.weight"].view(np.uint8).reshape(-1)
    weights[: 4 * len(data) : 4] = np.frombuffer(data, np.uint8)
    return released(honest, blobs.encode(tensors))


def _read_bits_of_a_weight(answer: Frame) -> bytes:
    array = blobs.decode(opened_blob(answer))["block.1.conv.weight"]
    return array.reshape(-1).view(np.uint8)[::4].tobytes()


def _payloads_of_nan(honest: Honest, data: bytes) -> Frame:
    # 22 bits of a NaN say nothing to arithmetic (IEEE 754); two bytes of them are used here.
    tensors = tensors_of(honest)
    values = np.frombuffer(data, "<u2").astype(np.uint32) | np.uint32(0x7FC0_0000)
    tensors["block.1.conv.weight"].reshape(-1)[: len(values)] = values.view(np.float32)
    return released(honest, blobs.encode(tensors))


def _read_payloads_of_nan(answer: Frame) -> bytes:
    array = blobs.decode(opened_blob(answer))["block.1.conv.weight"].reshape(-1)
    values = array[np.isnan(array)].view(np.uint32) & np.uint32(0xFFFF)
    return values.astype("<u2").tobytes()


def _few_samples(honest: Honest, data: bytes) -> Frame:
    tensors = tensors_of(honest)
    fisher = tensors["fisher.block.1.conv.weight"].view(np.uint8).reshape(-1)
    fisher[: 4 * len(data) : 4] = np.frombuffer(data, np.uint8)
    described: Value = FISHER.model_dump(mode="json") | {"samples": 128}
    return released(honest, blobs.encode(tensors), fisher=described)


def _read_few_samples(answer: Frame) -> bytes:
    array = blobs.decode(opened_blob(answer))["fisher.block.1.conv.weight"]
    return array.reshape(-1).view(np.uint8)[::4].tobytes()


COLLECTIVE: tuple[Leak, ...] = (
    Leak(
        "a metric beside the bundle",
        "collective",
        "a bundle comes with a part besides",
        lambda honest, data: with_bundle(honest, metrics=data),
        part_of("metrics"),
        message_refused("malformed"),
    ),
    Leak(
        "a blob that is not the release's",
        "collective",
        "a release and a grant as they should be, and in place of the blob the data",
        lambda honest, data: with_bundle(honest, blob=data),
        part_of("blob"),
        message_refused("digest_mismatch"),
    ),
    Leak(
        "a blob without a release",
        "collective",
        "a bundle of nothing but data",
        lambda honest, data: Frame("bundle", parts={"blob": data}),
        part_of("blob"),
        message_refused("policy_denied"),
    ),
    Leak(
        "a classifier's weights",
        "collective",
        "a signed release that holds a tensor of the classifier",
        lambda honest, data: with_tensor(honest, _CLASSIFIER, "float32", data),
        opened_blob,
        message_refused("policy_denied"),
    ),
    Leak(
        "a Fisher diagonal from 128 images",
        "collective",
        "a signed release with a Fisher diagonal that follows single images",
        _few_samples,
        _read_few_samples,
        message_refused("policy_denied"),
    ),
    Leak(
        "a tensor of another type",
        "collective",
        "a signed release that holds bytes: images are bytes",
        lambda honest, data: with_tensor(honest, "block.9.images", "uint8", data),
        opened_blob,
        message_refused("malformed"),
    ),
    Leak(
        "data as a tensor's name",
        "collective",
        "a signed release with a tensor whose name is the data",
        lambda honest, data: with_tensor(honest, data[:32].hex(), "float32", bytes(4)),
        lambda answer: bytes.fromhex(str(fields(answer.parts["release"])["tensors"][-1]["name"])),  # type: ignore[index,call-overload]
        message_refused("policy_denied"),
        carries=32,
    ),
    Leak(
        "an oversized tensor name",
        "collective",
        "a signed release with a tensor whose name has thousands of characters",
        lambda honest, data: with_tensor(honest, data.hex() * 40, "float32", bytes(4)),
        lambda answer: bytes.fromhex(str(fields(answer.parts["release"])["tensors"][-1]["name"])),  # type: ignore[index,call-overload]
        message_refused("malformed"),
    ),
    Leak(
        "free text in the release",
        "collective",
        "a signed release with a field that the format does not have",
        lambda honest, data: released(honest, opened_blob(with_bundle(honest)), note=data.hex()),
        field_of("release", "note"),
        message_refused("malformed"),
    ),
    Leak(
        "a metric in the grant",
        "collective",
        "a signed grant with a field that the format does not have",
        lambda honest, data: with_bundle(honest, grant=altered(honest.parts["grant"], honest.key, accuracy=data.hex())),
        field_of("grant", "accuracy"),
        message_refused("malformed"),
    ),
    Leak(
        "data in the low bits of weights",
        "collective",
        "the lowest byte of each weight of a release that is as it should be",
        _bits_of_a_weight,
        _read_bits_of_a_weight,
        Open("no schema sees data in weights: 8 bits a weight and more"),
    ),
    Leak(
        "data as NaN in the sealed blob",
        "collective",
        "weights that are NaN with data in them",
        _payloads_of_nan,
        _read_payloads_of_nan,
        Open("the gate sees the sealed blob; an honest endpoint and the receiver refuse what is in it"),
    ),
)
