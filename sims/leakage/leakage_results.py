"""``leakage.json``: everything that was measured about one release, with a description in words."""

import json
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from protocol.encoding.text import text_of
from protocol.errors import InputError, fault_line
from protocol.files.atomic import write_atomically
from protocol.files.user_files import read_given
from sims.leakage.attack_metrics import Bounds
from sims.leakage.leakage_settings import LeakageSettings
from sims.leakage.release_variants import variants

if TYPE_CHECKING:
    from sims.leakage.fisher_reconstruction import Reconstruction  # torch takes seconds to load

#: Folder and file of the results of ``learngene leakage`` in a run's folder.
FOLDER, FILE = "leakage", "leakage.json"

_FROZEN = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)
_MAX_BYTES = 64 << 20
Share = float
Question = Literal["membership", "class presence"]


class Measure(BaseModel):
    """A value and its 95 % interval."""

    model_config = _FROZEN

    value: float
    low: float
    high: float

    @classmethod
    def of(cls, bounds: Bounds) -> "Measure":
        """The same."""
        return cls(value=bounds.value, low=bounds.low, high=bounds.high)

    @property
    def turned(self) -> "Measure":
        """The AUROC of an attacker who turns the answer round."""
        return Measure(value=1 - self.value, low=1 - self.high, high=1 - self.low)


class RatesOf(BaseModel):
    """Rates of one attack, shares of 1. ``advantage`` is at the best threshold in hindsight."""

    model_config = _FROZEN

    auroc: Measure
    tpr_at_1_percent: Measure
    tpr_at_01_percent: Measure
    advantage: Measure
    balanced_accuracy: Measure

    @classmethod
    def of(cls, rates: Mapping[str, Bounds]) -> "RatesOf":
        """From bounds by name."""
        return cls.model_validate({name: Measure.of(bounds) for name, bounds in rates.items()})


class AttackResult(BaseModel):
    """One attack on one variant of the release.

    Attributes:
        release: on the released learngene itself, intervals over units (bootstrap).
        shadows: on every shadow in its turn, intervals over those targets (Student's t).
        by_chance: AUROC over the same shadows with made-up membership, and bounds that hold 95 % of these values.
        curve: mean true positive rate over the shadows at each false positive rate of the result's grid.
    """

    model_config = _FROZEN

    question: Question
    variant: str
    attack: str
    release: RatesOf | None
    shadows: RatesOf
    by_chance: Measure
    curve: tuple[Share, ...]


class ReconstructionResult(BaseModel):
    """What diagonals from ``samples`` images show; fields as of ``fisher_reconstruction.Reconstruction``."""

    model_config = _FROZEN

    samples: int
    noise: float
    template: Literal["activations", "gradients"]
    layer: str
    inside: Measure
    outside: Measure
    guess: Measure
    auroc: Measure
    match: Measure
    made_up: Measure
    crowd: int

    @classmethod
    def of(cls, found: "Reconstruction") -> "ReconstructionResult":
        """The same."""
        values = {
            field.name: Measure.of(value) if isinstance(value := getattr(found, field.name), Bounds) else value
            for field in fields(found)
        }
        return cls.model_validate(values)


class Control(BaseModel):
    """Test of an attack with a known answer.

    Attributes:
        kind: ``positive``: it must succeed; ``negative``: there is nothing to find.
        auroc: the AUROC that it reached.
        holds: a positive one: the whole interval is above one half; a negative one: one half is inside the interval.
    """

    model_config = _FROZEN

    kind: Literal["positive", "negative"]
    text: str
    auroc: Measure
    holds: bool

    @classmethod
    def positive(cls, text: str, bounds: Bounds) -> "Control":
        """A positive control: a leaky release."""
        return cls(kind="positive", text=text, auroc=Measure.of(bounds), holds=bounds.low > 0.5)

    @classmethod
    def negative(cls, text: str, bounds: Bounds) -> "Control":
        """A negative control: made-up membership."""
        holds = bounds.low <= 0.5 <= bounds.high
        return cls(kind="negative", text=text, auroc=Measure.of(bounds), holds=holds)


class Leakage(BaseModel):
    """``leakage.json``.

    Attributes:
        members, outsiders: candidates of the release of either kind.
        present, absent: classes asked for, of either kind.
        grid: false positive rates of the curves.
        chance_of_strongest: for each question, how far from one half the AUROC of the strongest attack is by chance:
            the largest over all attacks without noise, with made-up membership (as an AUROC above one half), and bounds
            that hold 95 % of these values. Empty in results of earlier versions.
        seconds: wall-clock times by part, of the last call.
    """

    model_config = _FROZEN

    format: Literal[1] = 1
    run_id: str
    dataset: str
    source: str
    notice: str
    profile: str
    run_seed: int
    command: str
    settings: LeakageSettings
    classes: int
    training_images: int
    fisher_samples: int
    members: int
    outsiders: int
    present: int
    absent: int
    grid: tuple[Share, ...]
    attacks: tuple[AttackResult, ...]
    chance_of_strongest: dict[Question, Measure] = {}
    reconstruction: tuple[ReconstructionResult, ...]
    controls: tuple[Control, ...]
    machine: dict[str, str]
    seconds: dict[str, float]

    def of(self, question: Question) -> tuple[AttackResult, ...]:
        """The attacks on one question."""
        return tuple(found for found in self.attacks if found.question == question)

    def on_release(self, question: Question) -> tuple[AttackResult, ...]:
        """The attacks on one question that read a learngene as it is released, without added noise."""
        names = [variant.name for variant in variants(())]
        return tuple(found for found in self.of(question) if found.variant in names)

    def strongest(self, question: Question) -> AttackResult | None:
        """The one of :meth:`on_release` whose AUROC over the shadows is farthest from one half: below it, an attacker
        turns the answer round. None if there is no attack."""
        return max(self.on_release(question), key=lambda row: abs(row.shadows.auroc.value - 0.5), default=None)


def sentences(found: Leakage) -> list[str]:
    """The measurement and its results in sentences; the claim is the strongest attack's."""
    questions: tuple[tuple[Question, str], ...] = (("membership", "image"), ("class presence", "class"))
    said = []
    for question, units in questions:
        best = found.strongest(question)
        if best is not None:
            said.append(_strongest_attack(found, question, best, units))
    released = [
        row
        for row in found.reconstruction
        if row.noise == 0
        and row.layer == "mean"
        and row.template == "gradients"
        and row.samples <= found.fisher_samples
    ]
    if released:
        row = max(released, key=lambda one: one.samples)
        said.append(
            f"From a Fisher diagonal of {row.samples} images an image behind it was told from another with an AUROC of "
            f"{measure_text(row.auroc)}, and picked out of {row.crowd + 1} in "
            f"{measure_text(row.match, per_cent=True)} of the cases (by chance {100 / (row.crowd + 1):.1f} %)."
        )
    failed = [control.text for control in found.controls if not control.holds]
    said.append(
        f"All {len(found.controls)} controls hold."
        if not failed
        else f"These controls do not hold, and what rests on them says nothing: {'; '.join(failed)}."
    )
    return said


def _strongest_attack(found: Leakage, question: Question, best: AttackResult, units: str) -> str:
    turned = best.shadows.auroc.value < 0.5
    reached, chance = best.shadows.auroc, best.by_chance
    if turned:
        reached, chance = reached.turned, chance.turned
    text = (
        f"The strongest of {len(found.on_release(question))} attacks on {question} ({best.attack}; {best.variant}"
        f"{'; its answer turned round' if turned else ''}) told a training {units} from another with an AUROC of "
        f"{measure_text(reached)} over {found.settings.shadows} shadow collectives as targets (95 % of what chance "
        f"gives this attack there: {chance.low:.3f} to {chance.high:.3f}"
    )
    if question in found.chance_of_strongest:
        of_all = found.chance_of_strongest[question]
        text += f"; the strongest of all by chance: {of_all.low:.3f} to {of_all.high:.3f}"
    text += ")"
    if best.release is not None:
        own = best.release.auroc.turned if turned else best.release.auroc
        text += f", and {measure_text(own)} on the release itself"
    if question == "membership":
        rows = found.on_release(question)
        most = max(rows, key=lambda row: row.shadows.tpr_at_1_percent.value)
        strict = max(rows, key=lambda row: row.shadows.tpr_at_01_percent.value)
        text += (
            f"; at 1 % false positives, {most.attack} ({most.variant}) found the most: "
            f"{measure_text(most.shadows.tpr_at_1_percent, per_cent=True)}; at 0.1 %, {strict.attack} "
            f"({strict.variant}): {measure_text(strict.shadows.tpr_at_01_percent, per_cent=True)}"
        )
    return text + "."


def measure_text(found: Measure, *, per_cent: bool = False) -> str:
    """``0.52 (0.50 to 0.54)``, or in per cent ``1.3 % (0.9 to 1.8)``."""
    if per_cent:
        return f"{100 * found.value:.1f} % ({100 * found.low:.1f} to {100 * found.high:.1f})"
    return f"{found.value:.3f} ({found.low:.3f} to {found.high:.3f})"


def to_json(found: Leakage) -> bytes:
    """Results as they are stored."""
    return (json.dumps(found.model_dump(mode="json"), indent=1, allow_nan=False) + "\n").encode()


def write(path: Path, found: Leakage) -> None:
    """Store results, readable."""
    write_atomically(path, to_json(found))


def load(path: Path) -> Leakage:
    """Read results.

    Raises:
        InputError: there are none, or another version wrote them.
    """
    try:
        return Leakage.model_validate_json(text_of(read_given(path, "the measurement", max_bytes=_MAX_BYTES)))
    except InputError:
        raise InputError(f"{path} cannot be read: measure with `learngene leakage RUN` first") from None
    except ValidationError as error:
        raise InputError(f"{path} is not what this version writes: {fault_line(error)}") from None
    except ValueError as error:
        raise InputError(f"{path} is not what this version writes: {error}") from None


def of_run(folder: Path) -> Leakage | None:
    """The results for a run; None if it was not measured.

    Raises:
        InputError: another version wrote it.
    """
    path = folder / FOLDER / FILE
    return load(path) if path.is_file() else None
