"""Shadow collectives: trained by the attacked run's own recipe on images whose membership the attacker decides."""

import hashlib
import json
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, ValidationError

from collective_node.collective_images import CollectiveImages, Truth
from collective_node.open_world.annotators import Oracle
from collective_node.pipeline import Evolved, evolve
from collective_node.settings import CollectiveSettings
from protocol.encoding import blob
from protocol.errors import InputError
from protocol.files.atomic import make_folder, write_folder_atomically
from protocol.learngene.architecture import Architecture
from protocol.learngene.learngene import FisherDescription, Learngene
from protocol.node.events import Events

_TENSORS, _DESCRIPTION = "learngene.safetensors", "learngene.json"


class _Description(BaseModel):
    """The description beside a shadow's tensors; ``made_of`` is the digest of images, settings and seed."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    made_of: str
    architecture: Architecture
    fisher: FisherDescription | None


@dataclass(frozen=True)
class Recipe:
    """How a collective is made.

    Attributes:
        settings: of the collective; it publishes the form ``condensed`` alone.
        truth: what the oracle knows about the stream; needed if there are open-world cycles.
    """

    settings: CollectiveSettings
    truth: Truth | None
    device: torch.device

    def evolve(self, images: CollectiveImages, seed: int, working: Path) -> Evolved:
        """Train a collective, which writes its files to ``working``.

        Raises:
            InputError, RunFailedError: as :func:`collective_node.pipeline.evolve`.
        """
        annotator = None
        if self.settings.cycles:
            if self.truth is None:
                raise ValueError("open-world cycles need the labels of the stream")
            annotator = Oracle(self.truth, self.settings.examples)
        return evolve(
            images,
            self.settings,
            seed=seed,
            device=self.device,
            checkpoints=working / "checkpoint",
            events=Events(working / "events.jsonl"),
            annotator=annotator,
        )


def as_the_run(settings: CollectiveSettings) -> CollectiveSettings:
    """A run's settings without those that do not affect the learngene in the form ``condensed``."""
    changes = {"forms": ("condensed",), "compare_scores": (), "compare_strategies": (), "annotator": "oracle"}
    return CollectiveSettings.model_validate(settings.model_dump() | changes)


def overfitted(settings: CollectiveSettings, classes: int, epochs: float) -> CollectiveSettings:
    """Settings that leak on purpose: one task of all classes, memorised, without any protection.

    Args:
        epochs: passes over the few images, for the network and again for the stem.
    """
    changes = {
        "width": max(settings.width, 0.25),
        "tasks": 1,
        "classes_per_task": classes,
        "expansion": (),
        "strategy": "replay",
        "epochs": epochs,
        "condense_epochs": epochs,
        "cycles": 0,
        "weight_decay": 0.0,
        "label_smoothing": 0.0,
        "dropout": 0.0,
        "layers": settings.layers or 3,
        "criterion": "gradient-trend",
        "descendant_epochs": 0.0,
    }
    return CollectiveSettings.model_validate(as_the_run(settings).model_dump() | changes)


def train_shadows(
    folder: Path,
    recipe: Recipe,
    images_of: Callable[[int], CollectiveImages],
    count: int,
    seed: int,
    said: Callable[[int, int], None],
) -> list[Learngene]:
    """Train the shadows that are not in ``folder`` yet, each stored whole or not at all, and load all of them.

    Args:
        images_of: the images of each shadow by its number.
        seed: shadow ``k`` is trained with a seed of its own, drawn from this one.
        said: gets (done, count) after each.

    Raises:
        InputError: a stored shadow was made of something else.
    """
    make_folder(folder)
    shadows = []
    for number in range(count):
        images = images_of(number)
        own_seed = int(np.random.default_rng([seed, number]).integers(2**31))
        made_of = _digest(recipe, images, own_seed)
        place = folder / f"shadow-{number:04}"
        if not place.is_dir():
            with tempfile.TemporaryDirectory(prefix=".working-", dir=folder) as working:
                learngene = recipe.evolve(images, own_seed, Path(working)).learngenes["condensed"]
            description = _Description(made_of=made_of, architecture=learngene.architecture, fisher=learngene.fisher)
            files = {
                _TENSORS: blob.encode(learngene.tensors),
                _DESCRIPTION: (description.model_dump_json(indent=1) + "\n").encode(),
            }
            write_folder_atomically(place, files)
        shadows.append(_load(place, made_of))
        said(number + 1, count)
    return shadows


def remove_leftovers(folder: Path) -> None:
    """Remove files that a killed process left in the folder of some shadows."""
    for path in folder.glob("*/.working-*"):
        shutil.rmtree(path, ignore_errors=True)


def _load(place: Path, made_of: str) -> Learngene:
    try:
        description = _Description.model_validate_json((place / _DESCRIPTION).read_bytes())
        tensors = blob.decode_float32((place / _TENSORS).read_bytes())
    except (OSError, ValidationError) as error:
        raise InputError(f"{place} is no whole shadow ({error}); remove it and give --resume again") from None
    if description.made_of != made_of:
        raise InputError(f"{place} was made of other images, settings or seeds; use those, or another --out")
    return Learngene(description.architecture, tensors, description.fisher)


def _digest(recipe: Recipe, images: CollectiveImages, seed: int) -> str:
    digest = hashlib.sha256(recipe.settings.model_dump_json().encode())
    digest.update(json.dumps([seed, torch.get_num_threads(), recipe.device.type, *images.classes]).encode())
    for array in (images.train_images, images.train_labels, images.heldout_images, images.heldout_labels):
        digest.update(array.tobytes())
    if recipe.settings.cycles and images.stream_images is not None:
        digest.update(images.stream_images.tobytes())
    return digest.hexdigest()
