"""An individual at a smaller size: every method does there what it does with the descended learngene."""

import functools
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from pydantic import ValidationError

from individual_node import adapted
from individual_node.cli import app
from individual_node.method_table import METHODS, Scored, name_and_change
from individual_node.methods import Evaluation
from individual_node.settings import IndividualSettings
from individual_node.target_tasks import PrivateImages
from protocol.commands.learngene import make
from protocol.errors import InputError
from protocol.learngene.architecture import Architecture, Form, Size, SizeName
from protocol.learngene.learngene import FisherDescription, Learngene
from protocol.learngene.sizes import descend
from protocol.node.events import Events
from tests.individual_node.made import CPU, SHOTS, architecture, blocks, images, learngene, task
from tests.two_folders import Done, Folders, make_folders, refused, run, succeeded

SIZES: tuple[SizeName, ...] = ("x0.25", "x0.5-shallow", "x0.5")
METHOD_NAMES = ("condensed", "condensed-eq9", "scratch", "random", "direct")
CHAIN = (*blocks("stem", (3, 8)), *blocks("top", (8, 8, 8)))


def sized(form: Form = "condensed") -> Learngene:
    plain = architecture(form, *CHAIN)
    described = Architecture(**{**dict(plain), "sizes": SIZES, "size_weights": "own" if form == "direct" else "nested"})
    rng = np.random.default_rng(3)
    tensors = {
        name: (
            rng.normal(0, 0.3, shape)
            if name.endswith(("conv.weight", "mean", "bias")) and role != "fisher"
            else rng.uniform(0.01, 0.5, shape)
        ).astype(np.float32)
        for name, (role, shape) in described.tensors(fisher=True).items()
    }
    return Learngene(
        described, tensors, FisherDescription(source="collective", estimator="sampled", samples=1024, clip_micro=0)
    )


def evaluation(folder: Path, learngenes: dict[Form, Learngene], **settings: object) -> Evaluation:
    pixels = images().pixels.numpy()
    own = PrivateImages(pixels, pixels, {SHOTS: [task(0), task(1), task(2)]})
    given = {"methods": METHOD_NAMES, "epochs": 2, "batch_size": 8, "networks_at_once": 2, **settings}
    return Evaluation(learngenes, own, IndividualSettings.model_validate(given), 0, CPU, Events(folder / "events"))


WHOLE: dict[Form, Learngene] = {"condensed": sized(), "direct": sized("direct")}


@pytest.mark.parametrize("size", SIZES)
def test_a_method_at_a_size_is_the_method_with_the_descended_learngene(size: SizeName, tmp_path: Path) -> None:
    every, seconds = evaluation(tmp_path, WHOLE, compare_sizes=SIZES).run_all()
    small: dict[Form, Learngene] = {form: descend(whole, size) for form, whole in WHOLE.items()}
    alone, _ = evaluation(tmp_path, small).run_all()
    set_to, _ = evaluation(tmp_path, WHOLE, size=size).run_all()
    full, _ = evaluation(tmp_path, {form: descend(whole, "full") for form, whole in WHOLE.items()}).run_all()
    assert set(every) == {*METHOD_NAMES, *(f"{name} {other}" for name in METHOD_NAMES for other in SIZES)}
    assert seconds.keys() == every.keys()
    for name in METHOD_NAMES:
        assert every[f"{name} {size}"] == alone[name] == set_to[name]
        assert every[name] == full[name]
    assert any(every[name] != every[f"{name} {size}"] for name in METHOD_NAMES)


def test_the_largest_size_below_a_number_of_weights_is_taken(tmp_path: Path) -> None:
    whole = WHOLE["condensed"].architecture
    every: tuple[Size, ...] = (*SIZES, "full")
    for size in every:
        most = whole.of_size(size).parameters
        found = evaluation(tmp_path, WHOLE, most_weights=most + 1).learngene("condensed")
        assert found.architecture == whole.of_size(size)
    with pytest.raises(InputError, match="at most 5 weights"):
        evaluation(tmp_path, WHOLE, most_weights=5).learngene("condensed")
    with pytest.raises(InputError, match=r"no size x0\.7"):
        evaluation(tmp_path, WHOLE, compare_sizes=("x0.7",)).run_all()
    # A form without sizes is not concerned.
    paper: dict[Form, Learngene] = {"paper": learngene("paper")}
    found = evaluation(tmp_path, paper, methods=("paper",), size="x0.5").learngene("paper")
    assert found.architecture == paper["paper"].architecture


def test_names_of_rows_say_method_and_size() -> None:
    settings = IndividualSettings(methods=("condensed", "scratch", "paper", "floor"), compare_sizes=("x0.5", "x0.25"))
    assert [one.name for one in settings.scored] == [
        "condensed", "scratch", "paper", "floor",
        "condensed x0.5", "scratch x0.5", "condensed x0.25", "scratch x0.25",
    ]  # fmt: skip
    for one in settings.scored:
        assert name_and_change(one.name) == (one.method.name, one.size or "")
    for name in METHODS:
        assert name_and_change(Scored(METHODS[name]).name) == (name, "")


@pytest.mark.parametrize(
    "fields",
    [
        {"size": "x0.3"},
        {"size": "half"},
        {"size": "x0.5", "most_weights": 1000},
        {"most_weights": 0},
        {"compare_sizes": ("full",)},
        {"compare_sizes": ("x0.5", "x0.5")},
        {"compare_sizes": ("x0.5",), "size": "x0.25"},
        {"compare_sizes": ("x0.5",), "most_weights": 1000},
    ],
)
def test_settings_that_contradict_themselves_are_refused(fields: dict[str, object]) -> None:
    for sound in ({"size": "x0.5"}, {"most_weights": 1000}, {"compare_sizes": ("x0.5", "x0.25")}):
        IndividualSettings.model_validate(sound)
    with pytest.raises(ValidationError):
        IndividualSettings.model_validate(fields)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> tuple[Folders, Path, Path]:
    """An individual that inherited a learngene with sizes; its bundle file, and a folder of pictures."""
    folder = tmp_path_factory.mktemp("site")
    folders = make_folders(folder)
    folders.publish(sized())
    bundle = folders.exchange(folder / "condensed.learngene")
    rng = np.random.default_rng(0)
    for name, colour in {"red": (200, 40, 40), "green": (40, 200, 40)}.items():
        (folder / "pictures" / name).mkdir(parents=True)
        for number in range(4):
            noise = rng.integers(-40, 40, (16, 16, 3))
            pixels = (np.array(colour) + noise).clip(0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(folder / "pictures" / name / f"{number}.png")
    return folders, bundle, folder / "pictures"


def went_well(done: Done) -> str:
    """What a command printed; its progress is on standard error."""
    assert done.code == 0, done
    return done.out


def adapting(site: tuple[Folders, Path, Path], out: Path) -> Callable[..., Done]:
    folders, bundle, pictures = site
    opening = ("--trust", folders.trust, "--root", folders.root, *folders.encryption)
    common = ("--bundle", bundle, *opening, "--data", pictures, "--out", out, "--folds", "0")
    return functools.partial(run, app, "adapt", *common)


@pytest.mark.parametrize("method", ["condensed", "condensed-eq9", "condensed-eq9-head"])
def test_a_model_says_its_size_and_works_at_it(site: tuple[Folders, Path, Path], method: str, tmp_path: Path) -> None:
    whole = WHOLE["condensed"].architecture
    middle = whole.of_size("x0.5").parameters
    for number, (options, size) in enumerate(
        (((), "full"), (("--size", "full"), "full"), (("--size", "x0.25"), "x0.25"),
         (("--most-weights", middle), "x0.5"), (("--set", "size=x0.5-shallow"), "x0.5-shallow"))
    ):  # fmt: skip
        out = tmp_path / str(number)
        shown = went_well(adapting(site, out)("--method", method, "--epochs", "1", *options))
        model = adapted.load(out)
        assert model.description.size == size
        assert model.description.architecture == whole.of_size(size)
        assert f"{model.description.architecture.parameters:,}" in shown
        pixels = np.zeros((2, 16, 16, 3), np.uint8)
        assert model.classifier.probabilities(pixels).shape == (2, 2)


def test_a_size_that_is_not_there_is_one_line(site: tuple[Folders, Path, Path], tmp_path: Path) -> None:
    answer = adapting(site, tmp_path / "model")
    refused(answer("--size", "x0.7"), "x0.7", "x0.25 (", "full (")
    refused(answer("--size", "half"), "size")
    refused(answer("--most-weights", "3"), "at most 3 weights", "x0.25 (")
    refused(answer("--size", "x0.25", "--most-weights", "1000"), "most_weights")
    assert not (tmp_path / "model").exists()
    went_well(answer("--size", "x0.25"))


def test_a_learngene_without_sizes_says_so(site: tuple[Folders, Path, Path], tmp_path: Path) -> None:
    folders = make_folders(tmp_path / "site")
    folders.publish(learngene())
    bundle = folders.exchange(tmp_path / "plain.learngene")
    answer = adapting((folders, bundle, site[2]), tmp_path / "model")
    refused(answer("--size", "x0.5"), "no smaller sizes")
    went_well(answer("--size", "full"))


def test_inspect_shows_the_sizes(site: tuple[Folders, Path, Path]) -> None:
    shown = succeeded(run(make(), "inspect", site[1]))
    told = json.loads(succeeded(run(make(), "inspect", site[1], "--json")))
    assert [one["size"] for one in told["sizes"]] == [*SIZES, "full"]
    for one in told["sizes"]:
        assert one["parameters"] == WHOLE["condensed"].architecture.of_size(one["size"]).parameters
        assert f"{one['size']} ({one['parameters']:,} weights)" in shown
