"""What ``individual-node predict`` and ``export`` do with a model that ``adapt`` made, and what they say of it."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from individual_node import adapted, image_folder, onnx_export
from individual_node.adapted import Description
from protocol.commands.decoder_warning import warn_unconfined
from protocol.commands.progress_bar import progress_bar
from protocol.commands.revocation_warning import warn_revoked
from protocol.errors import InputError, RefusedError
from protocol.files.user_files import check_free, check_outside, write_new
from protocol.node.endpoints import known_status
from protocol.output import add_row, print_table, say, say_json, table, warn
from protocol.pictures.reader import PictureReader, refuse_all
from protocol.trust.trust_store import RevocationStatus
from protocol.visible_text import visible_name


def name_pictures(
    model: Path, images: Sequence[Path], top: int, json_file: Path | None, *, bits: int | None = None
) -> None:
    """Name pictures with the model in a folder.

    Args:
        images: pictures; a folder stands for the pictures in it.
        top: most likely classes to show for each picture.
        json_file: also write them there; ``-``: to standard output, and no table.
        bits: as of :func:`individual_node.adapting.adapt_bundle`; None: as when the model was adapted.

    Raises:
        InputError: the model cannot be read, a file cannot be written, or, after the other pictures were named, some of
            them cannot be read.
    """
    if json_file not in (None, Path("-")):
        check_free(json_file)
        check_outside(json_file, [path for path in images if path.is_dir()], "the folder of pictures")
    loaded = adapted.load(model)
    files = image_folder.pictures_of(images)
    contract, classes = loaded.description.input, loaded.description.classes
    named: list[_Named] = []
    unread: list[tuple[Path, InputError]] = []
    with progress_bar(plain=False) as observe, PictureReader(bits=bits or loaded.description.bits) as reader:
        for number, (file, picture) in enumerate(zip(files, reader.read_each(files, contract), strict=True), 1):
            if isinstance(picture, InputError):
                unread.append((file, picture))
            else:
                row = loaded.classifier.probabilities(picture[None])[0]
                order = np.argsort(-row, kind="stable")[:top]
                named.append(_Named(file, [(classes[i], float(row[i])) for i in order]))
            observe(number, len(files), "naming pictures")
    warn_unconfined(reader)
    if named or json_file is not None:
        status = _say_status(loaded.description)
        if json_file is not None:
            _write_json(json_file, loaded.description, named, unread, status)
        if named and json_file != Path("-"):
            _show_predictions(named)
    refuse_all([error for _, error in unread], f"{len(unread)} of {len(files)} pictures cannot be read")


@dataclass(frozen=True)
class _Named:
    """A picture, and its most likely classes, each with its probability."""

    file: Path
    top: Sequence[tuple[str, float]]


def write_onnx(model: Path, onnx: Path, images: Sequence[Path], *, bits: int | None = None) -> None:
    """Write the model in a folder as one ONNX file, and run it once.

    Args:
        images: pictures to compare the file and the model on; none: random ones.
        bits: as of :func:`name_pictures`.

    Raises:
        InputError: a file cannot be read or written, or the extra ``onnx`` is missing.
    """
    check_free(onnx)
    onnx_export.check_installed()
    loaded = adapted.load(model)
    if images:
        contract = loaded.description.input
        files = image_folder.pictures_of(images)
        with PictureReader(bits=bits or loaded.description.bits) as reader:
            pixels = np.stack(list(reader.read_all(files, contract)))
        warn_unconfined(reader)
    else:
        pixels = onnx_export.random_pictures(loaded)
    difference = onnx_export.export(loaded, onnx, pixels)
    _say_status(loaded.description)
    if difference is None:
        said = "not compared with the model: onnxruntime is not installed (pip install 'learngene[onnx]')"
    else:
        said = f"run on {len(pixels)} {'given' if images else 'random'} pictures: differs by at most {difference:.1e}"
    say(f"{onnx}  {onnx.stat().st_size} bytes; {said}")


def _say_status(description: Description) -> RevocationStatus | None:
    """Warn if the learngene of a model should not be used any more, as far as the node that verified it knows."""
    if description.node is None:
        return None
    origin = description.learngene
    try:
        status = known_status(
            Path(description.node), run_id=origin.run_id, release=origin.release, signer=origin.collective
        )
    except (InputError, RefusedError) as error:
        warn(f"the node cannot say whether the learngene may still be used: {error}")
        return None
    if status is not None:
        warn_revoked(status, "the learngene that this model grew from", form=origin.form, release=origin.release)
    return status


def _show_predictions(named: Sequence[_Named]) -> None:
    others = len(named[0].top) > 1
    shown = table("picture", "class", "probability", *(["then"] if others else []), right=["probability"])
    for one in named:
        (best, probability), *rest = one.top
        then = ", ".join(f"{visible_name(name)} {value:.1%}" for name, value in rest)
        add_row(shown, visible_name(one.file), visible_name(best), f"{probability:.1%}", *([then] if others else []))
    print_table(shown)


def _write_json(
    path: Path,
    description: Description,
    named: Sequence[_Named],
    unread: Sequence[tuple[Path, InputError]],
    status: RevocationStatus | None,
) -> None:
    content: Mapping[str, object] = {
        "format": 1,
        "model": description.weights,
        "learngene": description.learngene.model_dump(mode="json"),
        "withdrawn": status == "withdrawn",
        "compromised": status == "compromised",
        "classes": description.classes,
        "pictures": [
            {"file": str(one.file), "top": [{"class": name, "probability": value} for name, value in one.top]}
            for one in named
        ],
        "unread": [{"file": str(file), "reason": str(error)} for file, error in unread],
    }
    if path == Path("-"):
        say_json(content, indent=2)
    else:
        # ASCII: a file's name need not be UTF-8.
        write_new(path, json.dumps(content, indent=2).encode("ascii") + b"\n", mode=0o644)
