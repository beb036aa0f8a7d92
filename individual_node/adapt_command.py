"""The command ``adapt``: its options."""

from pathlib import Path
from typing import Annotated

import typer

from individual_node.picture_options import BitsOption
from protocol.commands.bundle_options import EncryptionKeyOption, KeyFileOption, RootOption, TrustOption


def register(app: typer.Typer) -> None:
    """Add the command to an application."""
    app.command()(adapt)


def adapt(
    bundle: Annotated[Path, typer.Option(help="Bundle file: `individual-node bundle` writes one.")],
    data: Annotated[Path, typer.Option(help="Folder of own pictures: a folder for each class.")],
    out: Annotated[Path, typer.Option(help="Folder to make for the model.")],
    trust: TrustOption = None,
    root: RootOption = "",
    encryption_key: EncryptionKeyOption = None,
    key_file: KeyFileOption = None,
    config: Annotated[
        Path | None,
        typer.Option(
            help="Instead of these four: the configuration file of the node that inherited the learngene. Its ledger "
            "vouches for a bundle past its 7 days and knows of withdrawals; its table [individual] holds settings.",
            show_default=False,
        ),
    ] = None,
    method: Annotated[
        str, typer.Option(help="How to adapt; what there is depends on the form.", show_default="the form's own")
    ] = "",
    epochs: Annotated[
        int | None, typer.Option(help="Passes over the pictures, for methods that train.", min=1, show_default="20")
    ] = None,
    change: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            metavar="NAME=VALUE",
            help="Change any number of the adaptation: penalty=1.0, early_stopping=5; may be repeated.",
            show_default=False,
        ),
    ] = None,
    size: Annotated[
        str,
        typer.Option(
            help="Size, where the learngene has smaller ones: full, or a name like x0.5.", show_default="full"
        ),
    ] = "",
    most_weights: Annotated[
        int | None,
        typer.Option(help="Instead: its largest size of at most so many weights.", min=1, show_default="no limit"),
    ] = None,
    folds: Annotated[int, typer.Option(help="Parts for the estimate of the accuracy; 0: none.", min=0)] = 5,
    seed: Annotated[int, typer.Option(help="Of everything random.", min=0)] = 0,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:<number>.")] = "auto",
    bits: BitsOption = None,
) -> None:
    """Adapt a learngene to own pictures: a model that names them.

    \b
    Example:
      individual-node adapt --bundle condensed.learngene --config ~/individual/config.toml --data pictures --out model
    where `pictures` holds a folder for each class, with pictures of any size: PNG, JPEG, WebP, GIF, BMP, TIFF or PPM.
      pictures/ladybird/IMG_2041.JPG   pictures/ladybird/side view.png   pictures/leaf beetle/...
    """
    # Imported when it is called: a command's help needs none of it.
    from individual_node.adapting import Opening, adapt_bundle

    adapt_bundle(
        Opening(bundle, trust=trust, root=root, encryption_key=encryption_key, key_file=key_file, config=config),
        data,
        out,
        method=method,
        changes=[
            *(["epochs=" + str(epochs)] if epochs is not None else []),
            *([f"size={size}"] if size else []),
            *([f"most_weights={most_weights}"] if most_weights is not None else []),
            *(change or []),
        ],
        folds=folds,
        seed=seed,
        device=device,
        bits=bits,
    )
