"""The whole measurement of one release: shadows, attacks on every variant, reconstruction, and every control."""

import hashlib
import os
import platform
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, ValidationError

from collective_node.collective_images import CollectiveImages
from collective_node.pipeline import Evolved
from protocol.files.atomic import write_atomically
from protocol.learngene.images import choose_device
from protocol.learngene.learngene import Learngene
from sims.leakage import class_presence, membership
from sims.leakage.attack_evaluation import Attack, Statistics, by_chance, evaluate
from sims.leakage.attack_metrics import Bounds, Mask, Scores, central_bounds
from sims.leakage.attacked_run import AttackedRun, subset, without_in_stream
from sims.leakage.fisher_reconstruction import (
    class_behind_fisher,
    measure_reconstruction,
    with_few_images_behind,
)
from sims.leakage.leakage_results import (
    AttackResult,
    Control,
    Leakage,
    Measure,
    Question,
    RatesOf,
    ReconstructionResult,
)
from sims.leakage.leakage_settings import LeakageSettings
from sims.leakage.likelihood_ratio import paired_halves
from sims.leakage.probe import LabelledImages, Probe, first_of_each
from sims.leakage.release_variants import Variant, variants, with_noise
from sims.leakage.shadow_collectives import Recipe, as_the_run, overfitted, remove_leftovers, train_shadows
from sims.run.stopwatch import Stopwatch

#: False positive rates of the curves.
GRID = tuple(float(value) for value in np.logspace(-3, 0, 31))
#: Most classes of the positive control for membership.
_CONTROL_CLASSES = 5
#: Images of one class behind the diagonal of the positive control for class presence.
_CONTROL_SAMPLES = 8
# Streams of the random generator: one for each thing that is drawn.
_CANDIDATES, _HALVES, _CLASSES, _CLASS_HALVES, _CONTROL, _CONTROL_HALVES, _TWIN, _NOISE, _BOOTSTRAP, _MADE_UP = range(
    10
)

#: Folders of the shadows of each question, and the streams of their seeds.
SHADOWS = {"membership": 10, "control": 11, "classes": 12}

#: What is measured on a collective like the run's own.
TWIN_FILE = "twin.json"

#: Reports progress: gets the work, the number done, and the total.
Say = Callable[[str, int, int], None]


class _Twin(BaseModel):
    """Results on a collective like the run's own, whose classifier is known; ``made_of`` is a digest."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    made_of: str
    reconstruction: tuple[ReconstructionResult, ...]
    class_control: Measure
    few_images: dict[str, Measure]


class _Measurement:
    """One measurement, with everything that its parts need."""

    def __init__(self, run: AttackedRun, settings: LeakageSettings, folder: Path, say: Say) -> None:
        self.run, self.settings, self.folder, self.say = run, settings, folder, say
        self.device = choose_device(run.kept.settings.collective_device)
        self.recipe = Recipe(as_the_run(run.kept.settings.collective), run.truth, self.device)
        self.on_images = membership.attacks(settings)
        self.controls: list[Control] = []
        self.chance_of_strongest: dict[Question, Measure] = {}

    def rng(self, *stream: int) -> np.random.Generator:
        return np.random.default_rng([self.settings.seed, *stream])

    def shadows(
        self, name: str, recipe: Recipe, images_of: Callable[[Mask], CollectiveImages], halves: Mask
    ) -> list[Learngene]:
        """The trained shadows of one question."""
        return train_shadows(
            self.folder / name,
            recipe,
            lambda number: images_of(halves[number]),
            len(halves),
            int(self.rng(_HALVES, SHADOWS[name]).integers(2**31)),
            lambda done, count: self.say(f"shadow collectives, {name}", done, count),
        )

    def attacks(
        self,
        question: Question,
        attacks: Sequence[Attack],
        of: Callable[[Learngene], NDArray[np.float64]],
        shadows: list[Learngene],
        inside: Mask,
        truth: Mask,
        made_up: list[Mask],
    ) -> list[AttackResult]:
        """Every attack on every variant it can read; of those without noise, the negative control of each, and what the
        strongest of all has by chance."""
        rows: list[AttackResult] = []
        means: list[Scores] = []
        noises = (0.0, *self.settings.noise)
        for number, noise in enumerate(noises):
            found = self._statistics(question, of, shadows, inside, truth, noise, (number, len(noises)))
            for variant in variants(self.settings.noise):
                if variant.noise != noise:
                    continue
                for attack in attacks:
                    if not _reads(attack, variant):
                        continue
                    result = evaluate(attack, found, GRID, self.settings.resamples, self.rng(_BOOTSTRAP))
                    drawn = by_chance(attack, found, made_up)
                    chance = central_bounds(drawn)
                    if noise == 0:
                        means.append(drawn)
                        text = f"{question}, {attack.name}: made-up membership"
                        self.controls.append(Control.negative(text, chance))
                    rows.append(
                        AttackResult(
                            question=question,
                            variant=variant.name,
                            attack=attack.name,
                            release=None if result.release is None else RatesOf.of(result.release),
                            shadows=RatesOf.of(result.shadows),
                            by_chance=Measure.of(chance),
                            curve=result.curve,
                        )
                    )
        strongest = 0.5 + np.abs(np.array(means) - 0.5).max(0)
        self.chance_of_strongest[question] = Measure.of(central_bounds(strongest))
        return rows

    def _statistics(
        self,
        question: str,
        of: Callable[[Learngene], NDArray[np.float64]],
        shadows: list[Learngene],
        inside: Mask,
        truth: Mask,
        noise: float,
        place: tuple[int, int],
    ) -> Statistics:
        releases = [self.run.learngene, *shadows]
        tables: list[Scores] = []
        for number, learngene in enumerate(releases):
            tables.append(of(with_noise(learngene, noise, self.rng(_NOISE, number, round(noise * 1e6)))))
            total = place[1] * len(releases)
            self.say(f"statistics, {question}", place[0] * len(releases) + number + 1, total)
        return Statistics(tables[0], truth, np.array(tables[1:]), inside)

    def attack_images(self) -> tuple[list[AttackResult], membership.Candidates]:
        """Attack membership of images in the release, in every shadow, and in the overfitted control."""
        settings = self.settings
        candidates = membership.choose_candidates(self.run.images, settings.candidates, self.rng(_CANDIDATES))
        halves = candidates.halves(settings.shadows, self.rng(_HALVES))
        shadows = self.shadows("membership", self.recipe, candidates.training, halves)
        of = membership.measure(candidates, settings, self.device, fisher=True)
        made_up = [candidates.halves(settings.shadows, self.rng(_MADE_UP, 0, n)) for n in range(settings.made_up)]
        rows = self.attacks("membership", self.on_images, of, shadows, halves, candidates.members, made_up)
        return rows, candidates

    def overfitted_control(self) -> None:
        """Control with collectives that memorise a few images: every attack on membership by weights must succeed."""
        settings = self.settings
        few = subset(self.run.images, range(min(_CONTROL_CLASSES, len(self.run.images.classes))))
        count = settings.control_candidates * len(few.classes)
        candidates = membership.choose_candidates(few, count, self.rng(_CONTROL))
        halves = candidates.halves(settings.control_shadows, self.rng(_CONTROL_HALVES))
        recipe = Recipe(overfitted(self.recipe.settings, len(few.classes), settings.control_epochs), None, self.device)
        shadows = self.shadows("control", recipe, lambda inside: candidates.training(inside, alone=True), halves)
        of = membership.measure(candidates, settings, self.device, fisher=False)
        found = Statistics(None, None, np.array([of(learngene) for learngene in shadows]), halves)
        for attack in self.on_images:
            if attack.fisher:  # memorised images have no gradient; the control of these attacks is in `twin`
                continue
            result = evaluate(attack, found, GRID, settings.resamples, self.rng(_BOOTSTRAP))
            text = f"membership, {attack.name}: a collective that learned {len(halves[0]) // 2} images by heart"
            self.controls.append(Control.positive(text, result.shadows["auroc"]))

    def attack_classes(self) -> tuple[list[AttackResult], class_presence.CandidateClasses]:
        """Attack the presence of classes in the release and in every shadow."""
        settings, run = self.settings, self.run
        classes = class_presence.choose_classes(run.images, run.absent, settings.classes, self.rng(_CLASSES))
        # Otherwise the annotator of an open world would name classes that the shadow must not know.
        asked = set(classes.images.classes[: len(classes.members)])
        streamed, truth = without_in_stream(classes.images, run.truth, asked)
        classes = class_presence.CandidateClasses(streamed, classes.members)
        halves = classes.halves(settings.shadows, self.rng(_CLASS_HALVES))
        recipe = Recipe(self.recipe.settings, truth, self.device)
        shadows = self.shadows("classes", recipe, classes.training, halves)
        of = class_presence.measure(classes, settings.class_images, self.device, fisher=True)
        made_up = [classes.halves(settings.shadows, self.rng(_MADE_UP, 1, n)) for n in range(settings.made_up)]
        rows = self.attacks("class presence", class_presence.ATTACKS, of, shadows, halves, classes.members, made_up)
        return rows, classes

    def twin(self, candidates: membership.Candidates) -> _Twin:
        """Measure reconstruction on a collective trained as the run's own: the run keeps no condensed classifier."""
        settings, images = self.settings, self.run.images
        made_of = hashlib.sha256(
            (settings.model_dump_json() + self.recipe.settings.model_dump_json()).encode()
            + images.train_images.tobytes()
        ).hexdigest()
        path = self.folder / TWIN_FILE
        kept = _kept(path)
        if kept is not None and kept.made_of == made_of:
            return kept
        self.say("a twin of the collective", 0, 1)
        rng = self.rng(_TWIN)
        with tempfile.TemporaryDirectory(prefix=".working-", dir=self.folder) as working:
            evolved = self.recipe.evolve(images, int(rng.integers(2**31)), Path(working))
        collective, outputs = evolved.collective, evolved.collective.outputs
        base = torch.nonzero(collective.images.labels.cpu() < len(images.classes))[:, 0].numpy()
        asked = np.sort(rng.permutation(base)[: settings.compared])
        heldout = LabelledImages(images.heldout_images, images.heldout_labels)
        rest = LabelledImages(candidates.rest.train_images, candidates.rest.train_labels)
        own = rest.select(first_of_each(rest.labels, settings.head_images))
        probe = Probe(evolved.learngenes["condensed"], own, len(images.classes), self.device)
        estimator = self.recipe.settings.fisher_estimator
        found = measure_reconstruction(
            evolved.compact["condensed"],
            probe,
            collective.images,
            asked,
            outputs,
            samples=settings.samples,
            noise=settings.noise,
            repetitions=settings.repetitions,
            estimator=estimator,
            rng=rng,
        )
        control = class_behind_fisher(
            evolved.compact["condensed"],
            probe,
            collective.images,
            heldout.select(first_of_each(heldout.labels, settings.class_images)),
            outputs,
            samples=_CONTROL_SAMPLES,
            estimator=estimator,
            rng=rng,
        )
        few = np.sort(rng.permutation(base)[: 2 * _CONTROL_SAMPLES])
        reached = self._reached_with_few_images(evolved, few, own, rng)
        twin = _Twin(
            made_of=made_of,
            reconstruction=tuple(ReconstructionResult.of(one) for one in found),
            class_control=Measure.of(control),
            few_images={name: Measure.of(bounds) for name, bounds in reached.items()},
        )
        write_atomically(path, (twin.model_dump_json(indent=1) + "\n").encode())
        self.say("a twin of the collective", 1, 1)
        return twin

    def _reached_with_few_images(
        self, evolved: Evolved, few: NDArray[np.int64], own: LabelledImages, rng: np.random.Generator
    ) -> dict[str, Bounds]:
        """AUROC of each attack that reads the diagonal, if one half of a few images is behind it.

        Args:
            few: rows of the collective's images.
            own: the attacker's images.
        """
        settings, collective = self.settings, evolved.collective
        halves = paired_halves([len(few)], 2 * settings.control_shadows, rng)
        releases = with_few_images_behind(
            evolved.compact["condensed"],
            evolved.learngenes["condensed"],
            collective.images,
            few,
            halves,
            collective.outputs,
            estimator=self.recipe.settings.fisher_estimator,
            rng=rng,
        )
        pixels, labels = (
            part[torch.from_numpy(few)].cpu().numpy() for part in (collective.images.pixels, collective.images.labels)
        )
        few_images = LabelledImages(pixels, labels)
        table = [
            Probe(learngene, own, len(self.run.images.classes), self.device).statistics(few_images, fisher=True)
            for learngene in releases
        ]
        leaky = Statistics(None, None, np.array(table), halves)
        return {
            attack.name: evaluate(attack, leaky, GRID, settings.resamples, rng).shadows["auroc"]
            for attack in self.on_images
            if attack.fisher
        }

    def twin_controls(self, twin: _Twin) -> None:
        """Controls: one image or one class behind a diagonal must be found; made-up membership must not."""
        for row in twin.reconstruction:
            if row.noise or row.layer != "mean":
                continue
            if row.samples == 1:
                text = f"reconstruction, {row.template}: a diagonal of one image"
                self.controls.append(Control(kind="positive", text=text, auroc=row.auroc, holds=row.auroc.low > 0.5))
            if row.samples == max(one.samples for one in twin.reconstruction):
                # Twice the interval: by chance, one of twenty values lies outside a single interval.
                half, text = row.made_up.value - row.made_up.low, f"reconstruction, {row.template}: made-up images"
                holds = abs(row.made_up.value - 0.5) <= 2 * half
                self.controls.append(Control(kind="negative", text=text, auroc=row.made_up, holds=holds))
        for name, reached in twin.few_images.items():
            text = f"membership, {name}: a diagonal of {_CONTROL_SAMPLES} images"
            self.controls.append(Control(kind="positive", text=text, auroc=reached, holds=reached.low > 0.5))
        text = f"class presence, Fisher match: a diagonal of {_CONTROL_SAMPLES} images of one class"
        control = twin.class_control
        self.controls.append(Control(kind="positive", text=text, auroc=control, holds=control.low > 0.5))


def measure(run: AttackedRun, settings: LeakageSettings, folder: Path, command: str, say: Say) -> Leakage:
    """Attack a run's release; shadows and intermediate results lie in ``folder``, which exists.

    Results of an earlier call with the same arguments are used again.

    Raises:
        InputError: too few images, candidates or classes; or the folder holds something else.
        RunFailedError: a collective's loss is no longer a number.
    """
    threads = run.kept.settings.threads
    if threads:
        torch.set_num_threads(threads)
    clock, work = Stopwatch(), _Measurement(run, settings, folder, say)
    remove_leftovers(folder)
    rows, candidates = work.attack_images()
    clock.lap("membership")
    work.overfitted_control()
    clock.lap("membership control")
    class_rows, classes = work.attack_classes()
    clock.lap("class presence")
    twin = work.twin(candidates)
    work.twin_controls(twin)
    clock.lap("reconstruction")
    kept, fisher = run.kept, run.learngene.fisher
    assert fisher is not None
    return Leakage(
        run_id=run.record.run_id,
        dataset=run.dataset.name,
        source=run.dataset.source,
        notice=run.notice,
        profile=kept.settings.profile,
        run_seed=kept.settings.seed,
        command=command,
        settings=settings,
        classes=len(run.images.classes),
        training_images=len(run.images.train_labels),
        fisher_samples=fisher.samples,
        members=int(candidates.members.sum()),
        outsiders=int((~candidates.members).sum()),
        present=int(classes.members.sum()),
        absent=int((~classes.members).sum()),
        grid=GRID,
        attacks=(*rows, *class_rows),
        chance_of_strongest=work.chance_of_strongest,
        reconstruction=twin.reconstruction,
        controls=tuple(work.controls),
        machine=_machine(),
        seconds=clock.seconds,
    )


def _reads(attack: Attack, variant: Variant) -> bool:
    """Whether an attack is tried on a variant: without noise, one that reads no diagonal is tried without it only."""
    if variant.noise:
        return True
    return attack.fisher == variant.fisher


def _kept(path: Path) -> _Twin | None:
    try:
        return _Twin.model_validate_json(path.read_bytes())
    except (OSError, ValidationError):
        return None


def _machine() -> dict[str, str]:
    return {
        "cores": str(os.cpu_count()),
        "threads": str(torch.get_num_threads()),
        "architecture": platform.machine(),
        "system": platform.system(),
        "torch": torch.__version__,
    }
