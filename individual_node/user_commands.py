"""What a user does with a learngene: ``bundle``, ``adapt``, ``predict`` and ``export``; no relay is needed.

torch and numpy are loaded inside the commands only: ``individual-node start`` has to be confined before they are.
"""

import json
import sys
import time
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, get_args

import typer
from rich import box
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, TextColumn
from rich.table import Table

from protocol.errors import InputError, RefusedError, fault_line

if TYPE_CHECKING:
    from individual_node.adapted import AdaptedModel, Description
    from individual_node.configuration import IndividualConfiguration
    from individual_node.own_pictures import OwnPictures
    from individual_node.own_task import WorkObserver
    from individual_node.settings import IndividualSettings
    from protocol.architecture import Form
    from protocol.bundle import IndividualDesk
    from protocol.verification import VerifiedLearngene

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

    The file is as confidential as the learngene. It was granted to this individual, and for 7 days anybody who pins the
    same keys can verify it; longer only this node, which has it in its ledger.
    """
    from protocol import bundle_file

    packed = _desk(_configuration(config)).bundle(_form(form))
    if packed is None:
        raise InputError(
            f"this node has inherited nothing of the form {form} in its run yet: take part in a round first"
        )
    bundle_file.write(out, packed)
    typer.echo(f"{out}  {len(bundle_file.encode(packed))} bytes")


def adapt(
    bundle: Annotated[Path, typer.Option(help="Bundle file: `individual-node bundle` writes one.")],
    data: Annotated[Path, typer.Option(help="Folder of own pictures: a folder for each class.")],
    out: Annotated[Path, typer.Option(help="Folder to make for the model.")],
    trust: Annotated[
        Path | None,
        typer.Option(help="Trust store that pins the collective and this individual.", show_default=False),
    ] = None,
    config: Annotated[
        Path | None,
        typer.Option(
            help="Instead of --trust: the configuration file of the node that inherited the learngene. Its ledger "
            "vouches for a bundle past its 7 days, and its table [individual] holds settings.",
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
      individual-node adapt --bundle condensed.learngene --trust trust.json --data pictures --out model
    where `pictures` holds a folder of pictures, of any size and format, for each class:
      pictures/ladybird/IMG_2041.JPG   pictures/ladybird/side view.png   pictures/leaf beetle/...
    """
    from individual_node import adapted, own_pictures, own_task
    from protocol.images import choose_device

    if (trust is None) == (config is None):
        raise InputError("give either --trust or --config, by which the bundle is verified")
    adapted.check_free(out)
    node = None if config is None else _configuration(config)
    verified = open_bundle(bundle, trust, node)
    architecture = verified.learngene.architecture
    chosen = own_task.choose_method(method or None, architecture.form)
    given = ["epochs=" + str(epochs)] if epochs is not None else []
    settings = _settings(node, chosen.name, [*given, *(change or [])])
    on = choose_device(device)
    with _progress() as observe:
        pictures = own_pictures.read_tree(
            data, architecture.input, lambda done, total: observe(done, total, "reading pictures")
        )
        model = own_task.adapt_to_pictures(
            verified, pictures, settings, method=chosen, folds=folds, seed=seed, device=on, observe=observe
        )
    adapted.save(model, out)
    _show_model(model.description, pictures)
    typer.echo(f"model  {out}")


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

    from individual_node import adapted, own_pictures

    loaded = adapted.load(model)
    files = own_pictures.pictures_of(images)
    contract, classes = loaded.description.input, loaded.description.classes
    found = []
    with _progress(say=False) as observe:
        for done, file in enumerate(files, 1):
            found.append(loaded.classifier.probabilities(own_pictures.read_picture(file, contract)[None])[0])
            observe(done, len(files), "naming pictures")
    best = [np.argsort(-row, kind="stable")[:top] for row in found]
    named = [[(classes[i], float(row[i])) for i in order] for row, order in zip(found, best, strict=True)]
    if json_file is not None:
        _write_json(json_file, loaded, files, named)
    if json_file != Path("-"):
        _print(_prediction_table(files, named))


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

    from individual_node import adapted, onnx_export, own_pictures

    loaded = adapted.load(model)
    if images:
        contract = loaded.description.input
        files = own_pictures.pictures_of(images)
        pixels = np.stack([own_pictures.read_picture(file, contract) for file in files])
    else:
        pixels = onnx_export.random_pictures(loaded)
    difference = onnx_export.export(loaded, onnx, pixels)
    if difference is None:
        said = "not compared with the model: onnxruntime is not installed (pip install 'learngene[onnx]')"
    else:
        said = f"run on {len(pixels)} {'given' if images else 'random'} pictures: differs by at most {difference:.1e}"
    typer.echo(f"{onnx}  {onnx.stat().st_size} bytes; {said}")


def open_bundle(path: Path, trust: Path | None, node: "IndividualConfiguration | None") -> "VerifiedLearngene":
    """The one way from a bundle file to what may be adapted: verified by a trust store, or by a node's own and its
    ledger. Exactly one of them is given.

    Raises:
        InputError: a file cannot be read.
        RefusedError: the file is no bundle, or the first step of its verification that fails.
    """
    from protocol import bundle_file
    from protocol.policy import Policy
    from protocol.trust import TrustStore
    from protocol.verification import Holder, verify_file

    now = int(time.time())
    try:
        packed = bundle_file.read(path)
        if node is not None:
            return _desk(node).verify_file(packed, now)
        assert trust is not None
        store = TrustStore.load(trust)
        return verify_file(*packed, holder=Holder(), trust=store, policy=Policy.for_role("individual"), now=now)
    except RefusedError as error:
        raise type(error)(f"{path} is refused ({error.code}): {error}") from None


def _configuration(path: Path) -> "IndividualConfiguration":
    from individual_node.configuration import IndividualConfiguration
    from protocol.node_configuration import load

    return load(path, IndividualConfiguration)


def _desk(configuration: "IndividualConfiguration") -> "IndividualDesk":
    """The node's own desk; it may be running beside us."""
    from protocol.bundle import IndividualDesk
    from protocol.keys import SigningKey
    from protocol.trust import TrustStore

    node = configuration.node
    if not (node.state / "ledger.db").is_file():
        raise InputError(f"{node.state} holds no ledger: this node has never run")
    return IndividualDesk.open(
        node.state,
        party=node.party,
        key=SigningKey.load(node.key),
        trust=TrustStore.load(node.trust),
        run_id=node.run_id,
        clock=lambda: int(time.time()),
    )


def _form(word: str) -> "Form":
    from protocol.architecture import Form, form_named

    form = form_named(word)
    if form is None:
        raise InputError(f"{word!r} is no form of a learngene; there are: {', '.join(get_args(Form))}")
    return form


def _settings(node: "IndividualConfiguration | None", method: str, changes: Sequence[str]) -> "IndividualSettings":
    """The node's own settings, or the defaults, with what was changed by ``NAME=VALUE``."""
    from pydantic import ValidationError

    from individual_node.own_task import ELSEWHERE
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


@contextmanager
def _progress(*, say: bool = True) -> "Iterator[WorkObserver]":
    """A bar on standard error where that is a terminal; otherwise a line for each kind of work, if ``say``."""
    console = Console(stderr=True)
    if not console.is_terminal:
        said: set[str] = set()

        def write(done: int, total: int, text: str) -> None:
            if say and text not in said:
                said.add(text)
                print(text, file=sys.stderr)

        yield write
        return
    with Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.completed}/{task.total}"),
        console=console,
        transient=True,
    ) as bar:
        task = bar.add_task("", total=None)

        def show(done: int, total: int, text: str) -> None:
            bar.update(task, completed=done, total=total, description=text)

        yield show


def _show_model(description: "Description", pictures: "OwnPictures") -> None:
    """The table of classes, and the estimate in words."""
    from individual_node.own_task import wilson_interval
    from protocol.network import describe

    estimate, total = description.estimate, sum(description.pictures)
    table = Table(box=box.SIMPLE_HEAD)
    table.add_column("class")
    table.add_column("pictures", justify="right")
    if estimate is not None:
        table.add_column("named rightly", justify="right")
    for row, (name, count) in enumerate(zip(description.classes, description.pictures, strict=True)):
        table.add_row(escape(name), str(count), *([f"{estimate.correct[row]} of {count}"] if estimate else []))
    _print(table)
    origin = description.learngene
    typer.echo(f"learngene  {origin.form}, release {origin.seq} of run {origin.run_id}, {origin.release[:16]}")
    typer.echo(f"layers     {describe(description.architecture)}")
    typer.echo(f"method     {description.method}")
    if pictures.copies:
        typer.echo(f"copies     {len(pictures.copies)} pictures are there twice and count once: {pictures.copies[0]}")
    if estimate is None:
        typer.echo("estimate   none: a class has too few pictures for it, or none was asked for")
        return
    right = sum(estimate.correct)
    low, high = wilson_interval(right, total)
    guess = max(description.pictures) / total
    typer.echo(f"estimate   {right / total:.0%} of new pictures like these, 95 % interval {low:.0%} to {high:.0%}")
    typer.echo(f"           (always naming the largest class: {guess:.0%})")
    typer.echo(f"           {right} of {total} were named rightly, each by a model that was taught the other")
    typer.echo(f"           {estimate.folds - 1} of {estimate.folds} parts. Pictures from elsewhere can do worse.")


def _prediction_table(files: Sequence[Path], named: Sequence[Sequence[tuple[str, float]]]) -> Table:
    table = Table(box=box.SIMPLE_HEAD)
    table.add_column("picture", overflow="fold")
    table.add_column("class")
    table.add_column("probability", justify="right")
    if len(named[0]) > 1:
        table.add_column("then")
    for file, ((best, probability), *others) in zip(files, named, strict=True):
        then = ", ".join(f"{escape(name)} {value:.1%}" for name, value in others)
        table.add_row(escape(str(file)), escape(best), f"{probability:.1%}", *([then] if others else []))
    return table


def _write_json(
    path: Path, model: "AdaptedModel", files: Sequence[Path], named: Sequence[Sequence[tuple[str, float]]]
) -> None:
    from protocol.storage import write_atomically

    content: Mapping[str, object] = {
        "format": 1,
        "model": model.description.weights,
        "learngene": model.description.learngene.model_dump(mode="json"),
        "classes": model.description.classes,
        "pictures": [
            {"file": str(file), "top": [{"class": name, "probability": value} for name, value in best]}
            for file, best in zip(files, named, strict=True)
        ],
    }
    text = json.dumps(content, indent=2, ensure_ascii=False) + "\n"
    if path == Path("-"):
        typer.echo(text, nl=False)
    else:
        if not path.absolute().parent.is_dir():
            raise InputError(f"there is no folder {path.absolute().parent}")
        write_atomically(path, text.encode())


def _print(table: Table) -> None:
    """To standard output: as wide as the terminal, or as wide as it needs where that is a file or a pipe."""
    console = Console()
    if not console.is_terminal:
        console = Console(width=1000)
    console.print(table)
