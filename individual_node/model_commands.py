"""The commands ``predict`` and ``export``, a user's commands on a model that ``adapt`` made: their options."""

from pathlib import Path
from typing import Annotated

import typer

from individual_node.picture_options import BitsOption

_Model = Annotated[Path, typer.Argument(help="Folder that `adapt` wrote.")]


def register(app: typer.Typer) -> None:
    """Add the commands to an application."""
    for command in (predict, export):
        app.command()(command)


def predict(
    model: _Model,
    images: Annotated[list[Path], typer.Argument(help="Pictures; a folder stands for the pictures in it.")],
    top: Annotated[int, typer.Option(help="Most likely classes to show for each picture.", min=1)] = 3,
    json_file: Annotated[
        Path | None,
        typer.Option("--json", help="Also write them to this file; `-`: to standard output.", show_default=False),
    ] = None,
    bits: BitsOption = None,
) -> None:
    """Name pictures.

    \b
    Examples:
      individual-node predict model IMG_2077.JPG
      individual-node predict model new-pictures --json named.json --top 5

    Pictures are PNG, JPEG, WebP, GIF, BMP, TIFF or PPM; what cannot be read is said at the end, and the exit code is 2.
    A model knows its own classes only: a picture of something else gets one of them too.
    """
    # Imported when it is called: a command's help needs none of it.
    from individual_node.model_use import name_pictures

    name_pictures(model, images, top, json_file, bits=bits)


def export(
    model: _Model,
    onnx: Annotated[Path, typer.Option(help="File to write.")],
    images: Annotated[
        list[Path] | None,
        typer.Argument(help="Pictures to compare the file and the model on.", show_default="random ones"),
    ] = None,
    bits: BitsOption = None,
) -> None:
    """Write a model as one ONNX file, and run it once to see that it agrees with the model.

    \b
    Example:
      individual-node export model --onnx model.onnx

    The file takes `pictures`, float32 [N, C, H, W] with values 0..1, and gives `probabilities` [N, classes]; the
    normalisation is inside, the class names are in its metadata.
    """
    # Imported when it is called: a command's help needs none of it.
    from individual_node.model_use import write_onnx

    write_onnx(model, onnx, images or [], bits=bits)
