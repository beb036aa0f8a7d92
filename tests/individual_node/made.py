"""What the tests of adaptation share: small learngenes in every form, images and target tasks."""

from dataclasses import replace

import numpy as np
import torch

from individual_node.adaptation import Adapted, adapt, task_generator
from individual_node.method_table import METHODS
from individual_node.settings import IndividualSettings
from individual_node.target_tasks import TargetTask
from protocol.learngene.architecture import COMPLETE_FORMS, Architecture, Block, BlockRole, Form, InputContract
from protocol.learngene.images import DeviceImages, Normalisation
from protocol.learngene.learngene import FisherDescription, Learngene

CPU = torch.device("cpu")
SHOTS, WAYS = 4, 3


def blocks(role: BlockRole, widths: tuple[int, ...], pools: int = 1) -> tuple[Block, ...]:
    """A chain of blocks of one role; ``widths`` begins with what the first one takes, the last ``pools`` pool."""
    count = len(widths) - 1
    return tuple(
        Block(role=role, in_channels=widths[n], out_channels=widths[n + 1], pool=n >= count - pools)
        for n in range(count)
    )


def architecture(form: Form, *chain: Block, side: int = 16) -> Architecture:
    return Architecture(form=form, input=InputContract(height=side, width=side, channels=3), blocks=chain)


ARCHITECTURES: dict[Form, Architecture] = {
    **{form: architecture(form, *blocks("stem", (3, 8)), *blocks("top", (8, 8, 8))) for form in COMPLETE_FORMS},
    "paper": architecture("paper", *blocks("top", (8, 8, 8))),
    "paper-middle": architecture("paper-middle", *blocks("middle", (8, 8, 8))),
    "paper-front": architecture("paper-front", *blocks("front", (3, 8, 8))),
}


def learngene(form: Form = "condensed", *, fisher: float = 0.5) -> Learngene:
    """A small learngene with random weights and a Fisher diagonal up to ``fisher``."""
    rng = np.random.default_rng(0)
    tensors = {
        name: (
            rng.uniform(0, fisher, shape)
            if role == "fisher"
            else rng.uniform(0.5, 1.5, shape)
            if name.endswith(("norm.weight", "running_var", "std"))
            else rng.normal(0, 0.3, shape)
        ).astype(np.float32)
        for name, (role, shape) in ARCHITECTURES[form].tensors(fisher=True).items()
    }
    described = FisherDescription(source="collective", estimator="sampled", samples=1024, clip_micro=0)
    return Learngene(ARCHITECTURES[form], tensors, described)


def images(count: int = 60, seed: int = 1) -> DeviceImages:
    rng = np.random.default_rng(seed)
    pixels = rng.integers(0, 256, (count, 16, 16, 3), dtype=np.uint8)
    return DeviceImages.load(pixels, np.zeros(count, np.int64), Normalisation.of(pixels), CPU)


def task(number: int) -> TargetTask:
    rng = np.random.default_rng(number)
    rows = rng.permutation(60)
    labels = np.repeat(np.arange(WAYS), SHOTS)
    return TargetTask(number, WAYS, rows[: len(labels)], labels, rows[20:50], rng.integers(0, WAYS, 30))


def lopsided(task: TargetTask) -> TargetTask:
    """The same task with a single image of its last class."""
    kept = slice(0, (WAYS - 1) * SHOTS + 1)
    return replace(task, support=task.support[kept], support_labels=task.support_labels[kept])


def generators(*numbers: int) -> list[torch.Generator]:
    return [task_generator(0, "test", SHOTS, number) for number in numbers]


def adapted(name: str, *numbers: int, **settings: object) -> Adapted:
    """Networks of the tasks ``numbers``, adapted by a method."""
    method = METHODS[name]
    assert method.form is not None
    gene = learngene(method.form)
    return adapt(
        method,
        gene.architecture,
        None if method.adaptation == "scratch" else gene,
        [task(number) for number in numbers],
        images(),
        IndividualSettings.model_validate({"epochs": 2, "batch_size": 8, "learning_rate": 0.01, **settings}),
        generators(*numbers),
    )
