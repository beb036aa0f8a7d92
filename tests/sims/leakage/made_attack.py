"""A small world of drawn images, a recipe of seconds, and a release by it, to be attacked."""

from dataclasses import replace
from pathlib import Path

import torch

from collective_node.pipeline import Evolved
from sims.data.images import draw_stand_in
from sims.data.world_plan import WorldPlan
from sims.data.worlds import make_world
from sims.leakage.attacked_run import AttackedRun, open_attacked
from sims.leakage.leakage_settings import LeakageSettings
from sims.leakage.shadow_collectives import Recipe, as_the_run
from sims.run.settings import from_run_config
from tests.individual_node.made import learngene
from tests.sims.made_run import open_run

#: Numbers that make a measurement a matter of seconds.
SMALL = LeakageSettings(
    shadows=4,
    candidates=48,
    classes=4,
    noise=(1.0,),
    samples=(1, 8),
    repetitions=3,
    head_images=6,
    population=24,
    class_images=3,
    control_shadows=4,
    control_candidates=4,
    control_epochs=40.0,
    compared=8,
    resamples=20,
    made_up=6,
)


def make_attacked(folder: Path, *, cycles: int = 0) -> AttackedRun:
    """A run folder as far as an attack reads it: six taught classes of 24 training images each. Its release is made up;
    :func:`with_release` trains one."""
    changes = (
        "collective.tasks=2 collective.classes_per_task=3 collective.epochs=1 collective.condense_epochs=1 "
        f"collective.cycles={cycles} collective.open_epochs=0.2 collective.keep_known=0.5 "
        "collective.condense_budget=own"
    )
    config = {"dataset": "cifar100", "profile": "smoke", "stand-in": True, "set": changes, "threads": 1}
    settings = from_run_config({**config, "out": str(folder)})
    run = open_run(settings, run_id="0" * 32)
    run.close()
    source = draw_stand_in("a test", train_per_class=24, test_per_class=24)
    make_world(source, source.division, WorldPlan(target_tasks={10: 1}), 0, run.folder / "world")
    return open_attacked(run.folder, learngene())


def with_release(run: AttackedRun, working: Path) -> tuple[AttackedRun, Evolved]:
    """The same run with a release that was really trained by its recipe."""
    recipe = Recipe(as_the_run(run.kept.settings.collective), run.truth, torch.device("cpu"))
    evolved = recipe.evolve(run.images, 0, working)
    return replace(run, learngene=evolved.learngenes["condensed"]), evolved
