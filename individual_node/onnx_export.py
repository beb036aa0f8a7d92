"""An adapted model as one ONNX file that needs nothing else: normalisation inside, class names in its metadata.

Input ``pictures``: float32 ``[N, C, H, W]``, values 0..1 (a byte over 255), already cut to the input contract's size.
Output ``probabilities``: float32 ``[N, classes]``.
"""

import contextlib
import importlib.util
import io
import json
import logging
import warnings
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray

from individual_node.adapted import AdaptedModel
from protocol.errors import InputError, RunFailedError
from protocol.files.user_files import check_free, write_new

if TYPE_CHECKING:
    from onnx import GraphProto, ModelProto

INPUT, OUTPUT = "pictures", "probabilities"
#: Largest allowed difference between a probability of the file and our own.
TOLERANCE = 1e-4


def export(model: AdaptedModel, path: Path, pixels: NDArray[np.uint8]) -> float | None:
    """Write the ONNX file, after a run on the pictures ``pixels`` (uint8 ``[N, H, W, C]``) has shown that it agrees
    with the model.

    Returns:
        The largest difference between a probability of the file and our own; None if onnxruntime is not installed and
        nothing was compared.

    Raises:
        InputError: the extra ``onnx`` is not installed, or ``path`` exists.
        RunFailedError: the file cannot be run, or its probabilities differ by more than ``TOLERANCE``; nothing is
            written.
    """
    check_free(path)
    data = onnx_bytes(model)
    difference = largest_difference(model, data, pixels) if installed("onnxruntime") else None
    if difference is not None and not difference <= TOLERANCE:
        raise RunFailedError(
            f"the exported model differs from this one by {difference:.1e}, allowed is {TOLERANCE:.0e}; nothing is "
            "written: other versions of torch and onnx may help"
        )
    write_new(path, data, mode=0o644)
    return difference


def onnx_bytes(model: AdaptedModel) -> bytes:
    """The model in ONNX's own format; any number of pictures at once.

    Raises:
        InputError: the extra ``onnx`` is not installed.
    """
    check_installed()
    # Imported here and below, because it is an optional extra.
    import onnx

    proto = _exported(model)
    _strip(proto.graph)
    description = model.description
    contract = description.input
    onnx.helper.set_model_props(
        proto,
        {
            "classes": json.dumps(description.classes),
            "input": f"{INPUT}: float32 [N, {contract.channels}, {contract.height}, {contract.width}], values 0 to 1; "
            "a picture's shorter side is resized to fit, then its middle cut out",
            "output": f"{OUTPUT}: float32 [N, {len(description.classes)}], in the order of classes",
            "method": description.method,
            "learngene": description.learngene.model_dump_json(),
        },
    )
    onnx.checker.check_model(proto, full_check=True)
    data: bytes = proto.SerializeToString()
    return data


def check_installed() -> None:
    """Refuse to export without the extra that it needs.

    Raises:
        InputError: the extra ``onnx`` is not installed.
    """
    for name in ("onnx", "onnxscript"):
        if not installed(name):
            raise InputError(f"the export needs the module {name}; install it with: pip install 'learngene[onnx]'")


def largest_difference(model: AdaptedModel, data: bytes, pixels: NDArray[np.uint8]) -> float:
    """Largest difference between a probability of onnxruntime and our own, over pictures ``[N, H, W, C]``: all at once,
    and the first by itself.

    Raises:
        RunFailedError: onnxruntime cannot run it.
    """
    import onnxruntime

    found = []
    try:
        session = onnxruntime.InferenceSession(data, providers=["CPUExecutionProvider"])
        for part in (pixels, pixels[:1]):
            unit = np.ascontiguousarray(part.transpose(0, 3, 1, 2), np.float32) / np.float32(255)
            (theirs,) = session.run([OUTPUT], {INPUT: unit})
            found.append(float(np.abs(theirs - model.classifier.probabilities(part)).max()))
    except Exception as error:  # onnxruntime's own exceptions have no common base class
        raise RunFailedError(f"onnxruntime cannot run the exported model, nothing is written: {error}") from error
    return max(found)


def random_pictures(model: AdaptedModel, count: int = 8) -> NDArray[np.uint8]:
    """Random pictures for the comparison if there are no real ones: coarse squares, because pictures are smooth."""
    contract = model.description.input
    rng = np.random.default_rng(0)
    coarse = rng.integers(0, 256, (count, 4, 4, contract.channels), dtype=np.uint8)
    rows, columns = (np.arange(side) * 4 // side for side in (contract.height, contract.width))
    return coarse[:, rows][:, :, columns]


def installed(name: str) -> bool:
    """Whether a module of the extra is there."""
    return importlib.util.find_spec(name) is not None


def _strip(graph: "GraphProto") -> None:
    """Remove the source position of each operation: it names folders of this machine."""
    graph.ClearField("metadata_props")
    for entry in (*graph.node, *graph.input, *graph.output, *graph.value_info, *graph.initializer):
        entry.ClearField("metadata_props")
        entry.ClearField("doc_string")


def _exported(model: AdaptedModel) -> "ModelProto":
    contract = model.description.input
    # Two pictures: with one, the exporter may take the batch for a constant.
    example = torch.zeros(2, contract.channels, contract.height, contract.width)
    exporter_log = logging.getLogger("torch.onnx")
    level = exporter_log.level
    try:
        # Hide the exporter's messages about its steps; faults come as exceptions.
        exporter_log.setLevel(logging.ERROR)
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()), torch.no_grad():
            warnings.simplefilter("ignore")
            program = torch.onnx.export(
                model.classifier,
                (example,),
                dynamo=True,
                input_names=[INPUT],
                output_names=[OUTPUT],
                dynamic_shapes=({0: torch.export.Dim("N")},),
                verbose=False,
            )
    finally:
        exporter_log.setLevel(level)
    assert program is not None
    return program.model_proto
