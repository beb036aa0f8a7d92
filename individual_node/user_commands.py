"""What a user does with a learngene: ``bundle``, ``adapt``, ``predict`` and ``export``; no relay is needed.

torch and numpy are loaded inside the commands only: ``individual-node start`` has to be confined before they are.
"""

import json
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, get_args

import typer

from protocol.commands.progress_bar import progress_bar
from protocol.commands.revocation_warning import warn_revoked
from protocol.digest import digest_of
from protocol.errors import InputError, RefusedError, fault_line
from protocol.output import add_row, print_table, say, say_json, table, warn
from protocol.visible_text import visible_name

if TYPE_CHECKING:
    from individual_node.adapted import Description
    from individual_node.configuration import IndividualConfiguration
    from individual_node.image_folder import OwnPictures
    from individual_node.settings import IndividualSettings
    from protocol.learngene.architecture import Form
    from protocol.node.bundle_reading import Reading
    from protocol.pictures.reader import PictureReader
    from protocol.trust.trust_store import RevocationStatus

_MODEL_HELP = "Folder that `adapt` wrote."


def register(app: typer.Typer) -> None:
    """Add the commands to an application."""
    for command in (bundle, adapt, predict, export):
        app.command()(command)


def bundle(
    config: Annotated[Path, typer.Option(help="Configuration file of the node that inherited the learngene.")],
    out: Annotated[Path, typer.Option(help="File to write, by custom NAME.learngene.")],
    form: Annotated[str, typer.Option(help="Form of the learngene.")] = "condensed",
) -> None:
    """Pack the newest learngene that the node inherited into one file.

    \b
    Example:
      individual-node bundle --config ~/individual/config.toml --out condensed.learngene

    It was granted to this individual: its content opens with this node's encryption key only. For 7 days anybody who
    pins the same keys can verify its signatures; longer only this node, which has it in its ledger.
    """
    from protocol.exchange.individual_endpoint import IndividualEndpoint
    from protocol.files.user_files import check_free
    from protocol.messages import bundle_file, envelope, payloads
    from protocol.node.endpoints import node_of, open_endpoint

    wanted = form_of(form)
    check_free(out)
    endpoint = open_endpoint(node_of(config, "individual"), IndividualEndpoint)
    packed = endpoint.bundle(wanted)
    if packed is None:
        raise InputError(f"this node has inherited nothing of the form {form} in its run yet: request it first")
    bundle_file.write(out, packed)
    say(f"{out}  {len(bundle_file.encode(packed))} bytes")
    release = digest_of(packed.release)
    signer = payloads.decode(payloads.Release, envelope.parse(packed.release).payload).signer
    status = endpoint.revocation_status(release, signer)
    if status is not None:
        warn_revoked(status, "this learngene", form=form, release=release)


def adapt(
    bundle: Annotated[Path, typer.Option(help="Bundle file: `individual-node bundle` writes one.")],
    data: Annotated[Path, typer.Option(help="Folder of own pictures: a folder for each class.")],
    out: Annotated[Path, typer.Option(help="Folder to make for the model.")],
    trust: Annotated[
        Path | None,
        typer.Option(help="Trust store that pins the collective and this individual.", show_default=False),
    ] = None,
    root: Annotated[
        str, typer.Option(help="The pinned root's public key, which signs the trust store.", show_default=False)
    ] = "",
    encryption_key: Annotated[
        Path | None, typer.Option(help="This individual's encryption key, which opens the bundle.", show_default=False)
    ] = None,
    key_file: Annotated[
        Path | None,
        typer.Option(help="File that opens that key; without it a passphrase is asked for.", show_default=False),
    ] = None,
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
    from individual_node import adapted, image_folder, personal_model
    from protocol.files.user_files import check_free
    from protocol.learngene.images import choose_device
    from protocol.pictures.reader import PictureReader

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
    _say_unconfined(reader)
    _show_model(model.description, pictures)
    say(f"model  {out}")
    if reading.withdrawn:
        warn_revoked("withdrawn", "this learngene", form=architecture.form, release=verified.release_digest)


def predict(
    model: Annotated[Path, typer.Argument(help=_MODEL_HELP)],
    images: Annotated[list[Path], typer.Argument(help="Pictures; a folder stands for the pictures in it.")],
    top: Annotated[int, typer.Option(help="Most likely classes to show for each picture.", min=1)] = 3,
    json_file: Annotated[
        Path | None,
        typer.Option("--json", help="Also write them to this file; `-`: to standard output.", show_default=False),
    ] = None,
) -> None:
    """Name pictures.

    \b
    Examples:
      individual-node predict model IMG_2077.JPG
      individual-node predict model new-pictures --json named.json --top 5

    A model knows its own classes only: a picture of something else gets one of them too.
    """
    import numpy as np

    from individual_node import adapted, image_folder
    from protocol.pictures.reader import PictureReader

    loaded = adapted.load(model)
    files = image_folder.pictures_of(images)
    contract, classes = loaded.description.input, loaded.description.classes
    found = []
    with progress_bar(plain=False) as observe, PictureReader() as reader:
        for picture in reader.read_all(files, contract):
            found.append(loaded.classifier.probabilities(picture[None])[0])
            observe(len(found), len(files), "naming pictures")
    _say_unconfined(reader)
    status = _say_status(loaded.description)
    best = [np.argsort(-row, kind="stable")[:top] for row in found]
    named = [[(classes[i], float(row[i])) for i in order] for row, order in zip(found, best, strict=True)]
    if json_file is not None:
        _write_json(json_file, loaded.description, files, named, status)
    if json_file != Path("-"):
        _show_predictions(files, named)


def export(
    model: Annotated[Path, typer.Argument(help=_MODEL_HELP)],
    onnx: Annotated[Path, typer.Option(help="File to write.")],
    images: Annotated[
        list[Path] | None,
        typer.Argument(help="Pictures to compare the file and the model on.", show_default="random ones"),
    ] = None,
) -> None:
    """Write a model as one ONNX file, and run it once to see that it agrees with the model.

    \b
    Example:
      individual-node export model --onnx model.onnx

    The file takes `pictures`, float32 [N, C, H, W] with values 0..1, and gives `probabilities` [N, classes]; the
    normalisation is inside, the class names are in its metadata.
    """
    import numpy as np

    from individual_node import adapted, image_folder, onnx_export
    from protocol.pictures.reader import PictureReader

    loaded = adapted.load(model)
    if images:
        contract = loaded.description.input
        files = image_folder.pictures_of(images)
        with PictureReader() as reader:
            pixels = np.stack(list(reader.read_all(files, contract)))
        _say_unconfined(reader)
    else:
        pixels = onnx_export.random_pictures(loaded)
    difference = onnx_export.export(loaded, onnx, pixels)
    _say_status(loaded.description)
    if difference is None:
        said = "not compared with the model: onnxruntime is not installed (pip install 'learngene[onnx]')"
    else:
        said = f"run on {len(pixels)} {'given' if images else 'random'} pictures: differs by at most {difference:.1e}"
    say(f"{onnx}  {onnx.stat().st_size} bytes; {said}")


def open_bundle(
    path: Path,
    *,
    trust: Path | None = None,
    root: str = "",
    encryption_key: Path | None = None,
    key_file: Path | None = None,
    config: Path | None = None,
) -> "Reading":
    """The one way from a bundle file to what may be adapted: verified and opened, by a node, or by a trust store under
    a pinned root and the audience's encryption key.

    Raises:
        InputError: too little or too much is given, or a file cannot be read.
        RefusedError: the file is no bundle, or the first step of its verification that fails.
    """
    from protocol.node.bundle_reading import read_bundle

    if (config is None) == (trust is None):
        raise InputError("give either --config, or --trust with --root and --encryption-key, to open the bundle")
    if trust is not None and (not root or encryption_key is None):
        raise InputError("--trust needs --root, the pinned root's public key, and --encryption-key")
    return read_bundle(path, config=config, trust=trust, root=root, encryption_key=encryption_key, key_file=key_file)


def form_of(word: str) -> "Form":
    """The form of this name.

    Raises:
        InputError: there is none.
    """
    from protocol.learngene.architecture import Form, form_named

    form = form_named(word)
    if form is None:
        raise InputError(f"{word!r} is no form of a learngene; there are: {', '.join(get_args(Form))}")
    return form


def _configuration(path: Path) -> "IndividualConfiguration":
    from individual_node.configuration import IndividualConfiguration
    from protocol.node.configuration import load

    return load(path, IndividualConfiguration, "individual")


def _say_unconfined(reader: "PictureReader") -> None:
    """Say where the operating system did not confine what decoded the pictures."""
    if not reader.confined:
        warn(
            "this kernel does not confine the program that decoded the pictures (docs/confinement.md); name only "
            "pictures whose origin you trust"
        )


def _say_status(description: "Description") -> "RevocationStatus | None":
    """Say why the learngene that a model grew from should not be used any more, by the node that verified it."""
    from protocol.node.endpoints import known_status

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


def _settings(node: "IndividualConfiguration | None", method: str, changes: Sequence[str]) -> "IndividualSettings":
    """The node's own settings, or the defaults, with what was changed by ``NAME=VALUE``."""
    from pydantic import ValidationError

    from individual_node.personal_model import ELSEWHERE
    from individual_node.settings import IndividualSettings

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
    """A value as TOML writes it, or ``none``; other words stand for themselves."""
    if text == "none":
        return None
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text


def _show_model(description: "Description", pictures: "OwnPictures") -> None:
    """The table of classes, and the estimate in words."""
    from individual_node.personal_model import wilson_interval
    from protocol.learngene.network import describe

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


def _show_predictions(files: Sequence[Path], named: Sequence[Sequence[tuple[str, float]]]) -> None:

    others = len(named[0]) > 1
    shown = table("picture", "class", "probability", *(["then"] if others else []), right=["probability"])
    for file, ((best, probability), *rest) in zip(files, named, strict=True):
        then = ", ".join(f"{visible_name(name)} {value:.1%}" for name, value in rest)
        add_row(shown, visible_name(file), visible_name(best), f"{probability:.1%}", *([then] if others else []))
    print_table(shown)


def _write_json(
    path: Path,
    description: "Description",
    files: Sequence[Path],
    named: Sequence[Sequence[tuple[str, float]]],
    status: "RevocationStatus | None",
) -> None:
    from protocol.files.atomic import write_atomically

    content: Mapping[str, object] = {
        "format": 1,
        "model": description.weights,
        "learngene": description.learngene.model_dump(mode="json"),
        "withdrawn": status == "withdrawn",
        "compromised": status == "compromised",
        "classes": description.classes,
        "pictures": [
            {"file": str(file), "top": [{"class": name, "probability": value} for name, value in best]}
            for file, best in zip(files, named, strict=True)
        ],
    }
    if path == Path("-"):
        say_json(content, indent=2)
    else:
        if not path.absolute().parent.is_dir():
            raise InputError(f"there is no folder {path.absolute().parent}")
        # ASCII: a file's name need not be UTF-8.
        write_atomically(path, json.dumps(content, indent=2).encode("ascii") + b"\n")
