"""`learngene world make`: cut a dataset into one private folder per party, from the command line."""

import time
from pathlib import Path
from typing import Annotated

import typer

from protocol.files.user_files import expanded
from protocol.output import PlainTable, console, plain, say, warn
from protocol.pictures.formats import NAMES
from protocol.trust.policy import Policy
from sims.data.datasets import CACHE, DATASETS, dataset_name
from sims.data.division_choice import DivisionName
from sims.data.images import count_images, load_source
from sims.data.world_plan import WorldPlan, check_enough
from sims.data.worlds import World, check_free, make_world
from sims.run.options import (
    CACHE_HELP,
    CACHE_VARIABLE,
    DATA_VARIABLE,
    DIVISION_HELP,
    DIVISION_SEED_HELP,
    TEST_IMAGES_HELP,
)
from sims.run.settings import division_choice, typed_data

_world = typer.Typer(no_args_is_help=False, help="Worlds: the private folders of the parties of a simulation.")


def register(app: typer.Typer) -> None:
    """Add the command group ``world`` to ``app``."""
    app.add_typer(_world, name="world")


@_world.callback()
def _group() -> None:
    """Worlds: the private folders of the parties of a simulation."""


@_world.command("make")
def make(
    dataset: Annotated[str, typer.Argument(help=f"What to cut: {', '.join(DATASETS)}.")],
    out: Annotated[Path, typer.Option(help="Folder of the new world; must not hold anything yet.")],
    data: Annotated[
        Path | None,
        typer.Option(
            envvar=DATA_VARIABLE,
            help="Folder with train/<class>/<image> and test/<class>/<image> (or val/), or with the class folders "
            f"alone, images as {NAMES}; for folder with its split.json; for cifar100 also one with the published "
            "cifar-100-python.tar.gz. "
            "Without it CIFAR-100 is downloaded; without a network the stand-in is drawn.",
        ),
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="The same seed gives the same bytes.")] = 0,
    individuals: Annotated[
        int, typer.Option(min=1, max=1000, help="Individuals among whom the novel images are split.")
    ] = 1,
    target_tasks_10: Annotated[int, typer.Option(min=0, help="Target tasks with 10 images a class.")] = 40,
    target_tasks_20: Annotated[int, typer.Option(min=0, help="Target tasks with 20 images a class.")] = 10,
    ways: Annotated[int, typer.Option(min=2, help="Classes of a target task.")] = 5,
    test_images: Annotated[int | None, typer.Option(min=1, help=TEST_IMAGES_HELP, show_default="all")] = None,
    division: Annotated[DivisionName, typer.Option(help=DIVISION_HELP)] = "own",
    division_seed: Annotated[int, typer.Option(min=0, help=DIVISION_SEED_HELP)] = 0,
    cache: Annotated[Path, typer.Option(envvar=CACHE_VARIABLE, help=CACHE_HELP)] = CACHE,
    stand_in: Annotated[
        bool, typer.Option("--stand-in", help="Draw the built-in stand-in images instead; they are no photographs.")
    ] = False,
) -> None:
    """Cut a dataset: base and open-world classes for the collective, novel ones for the individuals.

    Examples:

      learngene world make cifar100 --data ~/images/cifar100 --out ~/world

      learngene world make imagenet100 --data ~/images/imagenet100 --out ~/world --individuals 3 --seed 7

      learngene world make folder --data ~/images/mine --out ~/world

      learngene world make cifar100 --division tuning --data ~/images/cifar100 --out ~/world

      learngene world make cifar100 --stand-in --out /tmp/world
    """
    name = dataset_name(dataset)
    if target_tasks_10 == target_tasks_20 == 0:
        raise typer.BadParameter("ask for at least one target task", param_hint="--target-tasks-10")
    plan = WorldPlan(
        individuals=individuals,
        ways=ways,
        target_tasks={shots: n for shots, n in ((10, target_tasks_10), (20, target_tasks_20)) if n},
        test_images=test_images,
    )
    choice = division_choice(division, division_seed)
    data = typed_data(data, stand_in=stand_in)
    # Check both before a download of minutes.
    check_free(expanded(out))
    found, counts = count_images(data, dataset=name, stand_in=stand_in, choice=choice)
    check_enough(counts, found, plan)
    base, fewest = sum(counts["train"][label] for label in found.base), fewest_fisher_images()
    if base < fewest:
        warn(
            f"this world has {base} training images of base classes, and a Fisher diagonal from fewer than {fewest} "
            "may not leave a site: no collective could publish a learngene of it; add images"
        )
    started = time.monotonic()
    source = load_source(data, dataset=name, stand_in=stand_in, choice=choice, cache=cache, say=say)
    world = make_world(source, source.division, plan, seed, out)
    _show(world)
    say(f"Made in {time.monotonic() - started:.1f} s: {world.folder}")


def fewest_fisher_images() -> int:
    """Images of a Fisher diagonal that may leave a site, unless its own policy asks for more."""
    return Policy.for_role("collective").minimum_fisher_samples


def _show(world: World) -> None:
    shown_on = console()
    shown_on.print(_table(world))
    if world.notice:
        shown_on.print(plain(world.notice, "bold yellow"), soft_wrap=True)
    duplicates = world.description.duplicates
    say(
        f"Identical pictures left out: {duplicates.dropped} that recur across roles or parts, "
        f"{duplicates.repeated} further copies."
    )


def _table(world: World) -> PlainTable:
    description = world.description
    origin = {"folder": "from a folder", "download": "as published", "stand-in": "the drawn stand-in"}
    table = PlainTable(
        title=plain(f"{description.dataset.name} ({origin[description.dataset.source]}), seed {description.seed}")
    )
    for heading in ("party", "part"):
        table.add_column(heading)
    for heading in ("images", "target tasks"):
        table.add_column(heading, justify="right")
    words = {
        "train": "labelled base images",
        "heldout": "held-out base images",
        "stream": "unlabelled stream, base and open-world",
        "human_heldout": "held-out open-world images (the human's)",
        "support": "support images",
        "test": "test images",
    }
    for party in world.parties:
        counts = description.counts[party]
        parts = [part for part in words if part in counts]
        for part in parts:
            first = part == parts[0]
            table.add_row(
                party if first else "",
                words[part],
                f"{counts[part]:,}",
                str(counts["tasks"]) if first and "tasks" in counts else "",
            )
    return table
