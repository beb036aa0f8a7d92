"""The plan by which a dataset is cut into a world, and the check that its images suffice."""

from collections.abc import Mapping
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

from protocol.errors import InputError
from sims.data.division import Division
from sims.data.folder_tree import Part

_STRICT = ConfigDict(frozen=True, extra="forbid", strict=True)


class WorldPlan(BaseModel):
    """How a dataset is cut.

    Attributes:
        individuals: parties among whom the novel images are split.
        ways: classes of a target task.
        target_tasks: for each shot count (support images a class) the number of target tasks; task ``t`` has a shot
            count when ``t`` is below its number, so the tasks of the smaller number are the first of the larger.
        test_images: test images of each class in a target task, drawn anew for each task; None: all that the
            individual has.
        fewest_train_images: training images that every base class must have for the collective.
        fewest_test_images: test images that every novel class must have for each individual.
    """

    model_config = _STRICT

    individuals: int = Field(default=1, ge=1, le=1000)
    ways: int = Field(default=5, ge=2)
    target_tasks: Mapping[Annotated[int, Field(ge=1)], Annotated[int, Field(ge=1)]] = Field(
        default_factory=lambda: {10: 40, 20: 10}, min_length=1
    )
    test_images: int | None = Field(default=None, ge=1)
    fewest_train_images: int = Field(default=10, ge=1)
    fewest_test_images: int = Field(default=10, ge=1)

    @property
    def shots(self) -> tuple[int, ...]:
        """Shot counts, ascending."""
        return tuple(sorted(self.target_tasks))

    @property
    def tasks(self) -> int:
        """Target tasks of the whole world."""
        return max(self.target_tasks.values())


def check_enough(counts: Mapping[Part, Mapping[str, int]], division: Division, plan: WorldPlan) -> None:
    """Refuse images that do not suffice for a plan.

    Args:
        counts: images by part and class.

    Raises:
        InputError: a class is missing or has too few images, or the plan contradicts itself.
    """
    missing = [name for name in division.classes if name not in counts["train"] or name not in counts["test"]]
    if missing:
        raise InputError(f"the images lack {len(missing)} classes that the division names: {', '.join(missing[:5])}")
    if plan.ways > len(division.novel):
        raise InputError(f"a {plan.ways}-way task needs {plan.ways} novel classes; there are {len(division.novel)}")
    if plan.individuals > plan.tasks:
        raise InputError(f"{plan.individuals} individuals but {plan.tasks} target tasks: ask for more tasks")
    base: Mapping[Part, int] = {"train": plan.fewest_train_images, "test": 2}
    fewest_test = max(plan.fewest_test_images, plan.test_images or 0)
    novel: Mapping[Part, int] = {"train": plan.shots[-1], "test": fewest_test}
    for part, of in counts.items():
        for names, fewest in ((division.base, base[part]), (division.open_world, 1)):
            for name in names:
                if of[name] < fewest:
                    raise InputError(f"class {name} has {of[name]} usable {part} images; {fewest} are needed")
        for name in division.novel:
            each = of[name] // plan.individuals
            if each < novel[part]:
                raise InputError(
                    f"novel class {name} has {of[name]} usable {part} images, {each} for each of {plan.individuals} "
                    f"individuals; {novel[part]} are needed: use fewer individuals, shots or test images"
                )
