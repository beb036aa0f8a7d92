"""The command ``adapt``: from a bundle file and own pictures to a model."""

import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer
from pydantic import ValidationError

from individual_node import adapted, image_folder, personal_model
from individual_node.adapted import Description
from individual_node.configuration import IndividualConfiguration
from individual_node.image_folder import OwnPictures
from individual_node.personal_model import ELSEWHERE, wilson_interval
from individual_node.settings import IndividualSettings
from protocol.commands.bundle_options import EncryptionKeyOption, KeyFileOption, RootOption, TrustOption
from protocol.commands.decoder_warning import warn_unconfined
from protocol.commands.progress_bar import progress_bar
from protocol.commands.revocation_warning import warn_revoked
from protocol.errors import InputError, fault_line
from protocol.files.user_files import check_free
from protocol.learngene.images import choose_device
from protocol.learngene.network import describe
from protocol.node.bundle_reading import Reading, read_bundle
from protocol.node.configuration import load
from protocol.output import add_row, print_table, say, table
from protocol.pictures.reader import PictureReader
from protocol.visible_text import visible_name


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
    folds: Annotated[int, typer.Option(help="Parts for the estimate of the accuracy; 0: none.", min=0)] = 5,
    seed: Annotated[int, typer.Option(help="Of everything random.", min=0)] = 0,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:<number>.")] = "auto",
) -> None:
    """Adapt a learngene to own pictures: a model that names them.

    \b
    Example:
      individual-node adapt --bundle condensed.learngene --config ~/individual/config.toml --data pictures --out model
    where `pictures` holds a folder of pictures, of any size and format, for each class:
      pictures/ladybird/IMG_2041.JPG   pictures/ladybird/side view.png   pictures/leaf beetle/...
    """
    check_free(out)
    node = None if config is None else _configuration(config)
    reading = open_bundle(
        bundle, trust=trust, root=root, encryption_key=encryption_key, key_file=key_file, config=config
    )
    verified = reading.opened
    assert verified is not None
    architecture = verified.learngene.architecture
    chosen = personal_model.choose_method(method or None, architecture.form)
    given = ["epochs=" + str(epochs)] if epochs is not None else []
    settings = _settings(node, chosen.name, [*given, *(change or [])])
    on = choose_device(device)
    with progress_bar() as observe, PictureReader() as reader:
        pictures = image_folder.read_tree(
            data, architecture.input, lambda done, total: observe(done, total, "reading pictures"), reader=reader
        )
        model = personal_model.adapt_to_pictures(
            verified,
            pictures,
            settings,
            method=chosen,
            folds=folds,
            seed=seed,
            device=on,
            node=config,
            observe=observe,
        )
    adapted.save(model, out)
    warn_unconfined(reader)
    _show_model(model.description, pictures)
    say(f"model  {out}")
    if reading.withdrawn:
        warn_revoked("withdrawn", "this learngene", form=architecture.form, release=verified.release_digest)


def open_bundle(
    path: Path,
    *,
    trust: Path | None = None,
    root: str = "",
    encryption_key: Path | None = None,
    key_file: Path | None = None,
    config: Path | None = None,
) -> Reading:
    """Verify and open a bundle file, by a node, or by a trust store under a pinned root and the audience's encryption
    key. This is the only way to a learngene that may be adapted.

    Raises:
        InputError: too little or too much is given, or a file cannot be read.
        RefusedError: the file is no bundle, or the first step of its verification that fails.
    """
    if (config is None) == (trust is None):
        raise InputError("give either --config, or --trust with --root and --encryption-key, to open the bundle")
    if trust is not None and (not root or encryption_key is None):
        raise InputError("--trust needs --root, the pinned root's public key, and --encryption-key")
    return read_bundle(path, config=config, trust=trust, root=root, encryption_key=encryption_key, key_file=key_file)


def _configuration(path: Path) -> IndividualConfiguration:
    return load(path, IndividualConfiguration, "individual")


def _settings(node: IndividualConfiguration | None, method: str, changes: Sequence[str]) -> IndividualSettings:
    """The node's own settings, or the defaults, with the changes ``NAME=VALUE``."""
    values: dict[str, object] = {} if node is None else node.individual.model_dump()
    for change in changes:
        name, sign, text = change.partition("=")
        names = [field for field in IndividualSettings.model_fields if field not in ELSEWHERE]
        if not sign or name not in names:
            raise InputError(f"--set wants NAME=VALUE, not {change!r}; the names are: {', '.join(names)}")
        values[name] = _value(text)
    try:
        return IndividualSettings.model_validate({**values, "methods": (method,)})
    except ValidationError as error:
        raise InputError(f"--set: {fault_line(error)}") from None


def _value(text: str) -> object:
    """Read a value as TOML, or ``none``; other words are texts."""
    if text == "none":
        return None
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text


def _show_model(description: Description, pictures: OwnPictures) -> None:
    """The table of classes, and the estimate in words."""
    estimate, total = description.estimate, sum(description.pictures)
    columns = ["class", "pictures", *(["named rightly"] if estimate is not None else [])]
    shown = table(*columns, right=columns[1:])
    for row, (name, count) in enumerate(zip(description.classes, description.pictures, strict=True)):
        add_row(shown, visible_name(name), str(count), *([f"{estimate.correct[row]} of {count}"] if estimate else []))
    print_table(shown)
    origin = description.learngene
    say(f"learngene  {origin.form}, release {origin.seq} of run {origin.run_id}, {origin.release[:16]}")
    say(f"layers     {describe(description.architecture)}")
    say(f"method     {visible_name(description.method)}")
    if pictures.copies:
        first = visible_name(pictures.copies[0])
        say(f"copies     {len(pictures.copies)} pictures are there twice and count once: {first}")
    if estimate is None:
        say("estimate   none: a class has too few pictures for it, or none was asked for")
        return
    right = sum(estimate.correct)
    low, high = wilson_interval(right, total)
    guess = max(description.pictures) / total
    say(f"estimate   {right / total:.0%} of new pictures like these, 95 % interval {low:.0%} to {high:.0%}")
    say(f"           (always naming the largest class: {guess:.0%})")
    say(f"           {right} of {total} were named rightly, each by a model that was taught the other")
    say(f"           {estimate.folds - 1} of {estimate.folds} parts. Pictures from elsewhere can do worse.")
