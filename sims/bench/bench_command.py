"""The command ``learngene bench``: how fast this machine does what a user waits for, each thing beside another."""

from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import Annotated

import typer

from sims.bench.bundle_command import bundle
from sims.data.datasets import DatasetName

#: A module of this package whose function ``measure`` gives rows, and what else that is told; it is imported when it is
#: measured, because a command's help needs none of it.
_Part = tuple[str, dict[str, object]]

_Repeats = Annotated[int, typer.Option(help="How often everything is measured.", min=1, max=100)]
_Json = Annotated[Path | None, typer.Option("--json", help="File to write everything measured to.", show_default=False)]
_Seconds = Annotated[float, typer.Option(help="Length of one measurement, about.", min=0.01, max=600)]


def register(app: typer.Typer) -> None:
    """Add ``bench`` with its commands to an application."""
    bench = typer.Typer(
        help="How fast this machine is at what a user waits for; without a command, all of it (half an hour).",
        invoke_without_command=True,
        rich_markup_mode=None,
    )
    bench.callback()(everything)
    for command in (bundle, train, fisher, adapt, whole_round, scale, start):
        bench.command("round" if command is whole_round else command.__name__)(command)
    app.add_typer(bench, name="bench")


def everything(context: typer.Context, repeats: _Repeats = 5, json_file: _Json = None) -> None:
    """Measure all of it, each thing beside another in turn, and the limits of the machine.

    \b
    Example:
      learngene bench --json bench.json
    """
    if context.invoked_subcommand is not None:
        return
    parts = ("train", "fisher", "adapt", "bundle", "round", "scale", "start")
    _show("Everything", [(part, {}) for part in parts], repeats, json_file)


def train(
    repeats: _Repeats = 5,
    seconds: _Seconds = 4.0,
    json_file: _Json = None,
    profile: Annotated[
        bool, typer.Option("--profile", help="Say instead where the time of a step goes, operation by operation.")
    ] = False,
    width: Annotated[float, typer.Option(help="With --profile: factor on the paper's widths.", min=0.01, max=4)] = 0.25,
) -> None:
    """Time the collective's training step on this machine's processors.

    \b
    Examples:
      learngene bench train --json train.json
      learngene bench train --profile --width 0.375
    """
    if profile:
        from sims.bench.step_profile import show_profile  # as the parts

        show_profile(width, seconds)
    else:
        _show("The training step", [("train", {"seconds": seconds})], repeats, json_file)


def fisher(
    repeats: _Repeats = 5,
    width: Annotated[float, typer.Option(help="Factor on the paper's widths.", min=0.01, max=4)] = 1.0,
    json_file: _Json = None,
) -> None:
    """Time the Fisher diagonal beside a forward pass, and beside other ways to get it that are installed.

    \b
    Example:
      learngene bench fisher --json fisher.json
    """
    _show("The Fisher diagonal", [("fisher", {"width": width})], repeats, json_file)


def adapt(
    repeats: _Repeats = 5,
    tasks: Annotated[int, typer.Option(help="Target tasks.", min=1, max=10_000)] = 40,
    epochs: Annotated[int, typer.Option(help="Epochs of adaptation.", min=1, max=1000)] = 20,
    json_file: _Json = None,
) -> None:
    """Time an individual's adaptation to many target tasks beside one after the other.

    \b
    Example:
      learngene bench adapt --tasks 10 --epochs 5
    """
    _show("Adaptation", [("adapt", {"tasks": tasks, "epochs": epochs})], repeats, json_file)


def whole_round(
    repeats: _Repeats = 5,
    dataset: Annotated[DatasetName, typer.Option(help="What `learngene run` runs.")] = "cifar100",
    profile: Annotated[str, typer.Option(help="Its profile.")] = "smoke",
    data: Annotated[
        Path | None, typer.Option(help="Its folder of real images. [default: the stand-in]", show_default=False)
    ] = None,
    json_file: _Json = None,
) -> None:
    """Time a whole simulated run, and say where the time goes that is not the nodes' own work.

    \b
    Example:
      learngene bench round --profile quick --data cifar100 --repeats 1
    """
    images = ["--stand-in"] if data is None else ["--data", str(data)]
    options = (dataset, "--profile", profile, *images)
    _show("A whole run", [("round", {"options": options})], repeats, json_file)


def scale(
    repeats: _Repeats = 5,
    individuals: Annotated[int, typer.Option(help="Of the large round.", min=11, max=100_000)] = 1000,
    json_file: _Json = None,
) -> None:
    """Time a round with very many individuals at one relay beside a round with ten.

    \b
    Example:
      learngene bench scale --individuals 200 --repeats 3
    """
    _show("Individuals at one relay", [("scale", {"many": individuals})], repeats, json_file)


def start(repeats: _Repeats = 5, json_file: _Json = None) -> None:
    """Time the help of every command beside an empty Python process, and the reading of a folder of images.

    \b
    Example:
      learngene bench start
    """
    _show("Before any work", [("start", {})], repeats, json_file)


def _show(title: str, parts: Sequence[_Part], repeats: int, json_file: Path | None) -> None:
    """Measure the parts, print one table of all their rows, and write it down."""
    from sims.bench.rows_report import measure_and_show  # as the parts

    measures = [(import_module(f"sims.bench.{part}_timing").measure, told) for part, told in parts]
    measure_and_show(title, measures, repeats, json_file)
