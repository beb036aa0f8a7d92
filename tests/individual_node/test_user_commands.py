"""From a bundle file and own pictures to a model, its predictions and its ONNX file, as a user types it."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from scipy.stats import binomtest

from individual_node import adapted, onnx_export, own_pictures, own_task
from individual_node.cli import app
from individual_node.own_pictures import OwnPictures
from individual_node.settings import IndividualSettings
from individual_node.user_commands import open_bundle
from protocol import bundle_file
from protocol.architecture import Form
from protocol.bundle import CollectiveDesk, IndividualDesk
from protocol.bundle_file import BundleFile
from protocol.errors import InputError, RunFailedError
from protocol.images import DeviceImages, Normalisation
from protocol.learngene import Learngene
from protocol.messages import LIFE, SKEW
from protocol.node_commands import initialise
from protocol.node_configuration import NodeConfiguration, load
from protocol.terminal import run_app
from protocol.trust import TrustStore
from protocol.verification import VerifiedLearngene
from tests.protocol.parties import COLLECTIVE, learngene

Run = Callable[..., tuple[int, str, str]]


@dataclass(frozen=True)
class Node:
    """An individual's folder after a round: its configuration, its trust store, and a bundle file of each form."""

    config: Path
    trust: Path
    bundles: dict[Form, Path]


def inherited(folder: Path, at: int) -> Node:
    """As ``individual-node init``, ``learngene trust add`` and one round at the time ``at`` (unix s) leave it."""
    data = folder / "data"
    data.mkdir(parents=True)
    home = folder / "node"
    key = initialise(home, role="individual", data=data, party="individual-1")
    config = home / "config.toml"
    node = load(config, NodeConfiguration).node
    TrustStore.load(node.trust).with_key(COLLECTIVE.public_hex, "collective", "collective").save(node.trust)
    trust = TrustStore().with_key(COLLECTIVE.public_hex, "collective", "collective")
    giver = CollectiveDesk.open(
        folder / "collective",
        party="collective",
        key=COLLECTIVE,
        trust=trust.with_key(key.public_hex, "individual", "individual-1"),
        run_id=node.run_id,
        clock=lambda: at,
    )
    desk = IndividualDesk.open(
        node.state, party=node.party, key=key, trust=TrustStore.load(node.trust), run_id=node.run_id, clock=lambda: at
    )
    bundles: dict[Form, Path] = {}
    forms: tuple[Form, ...] = ("condensed", "paper")
    for form in forms:
        giver.publish(drawn(form), at)
        desk.inherit(*giver.answer_request(desk.request(form, at, os.urandom(16)), at), at)
        bundles[form] = folder / f"{form}.learngene"
        packed = desk.bundle(form)
        assert packed is not None
        bundle_file.write(bundles[form], packed)
    return Node(config, node.trust, bundles)


def drawn(form: Form) -> Learngene:
    """A small learngene whose random weights tell colours apart."""
    made, rng = learngene(form=form), np.random.default_rng(0)
    tensors = {name: np.ones_like(array) for name, array in made.tensors.items()}
    for name, array in tensors.items():
        if name.endswith("conv.weight") and not name.startswith("fisher."):
            tensors[name] = rng.normal(0, 0.5, array.shape).astype(np.float32)
        elif name.endswith(("norm.bias", "running_mean", "input.mean")):
            tensors[name] = np.full_like(array, 0.5 if name == "input.mean" else 0)
        elif name == "input.std":
            tensors[name] = np.full_like(array, 0.25)
        elif name.startswith("fisher."):
            tensors[name] = np.full_like(array, 1e-3)
    return Learngene(made.architecture, tensors, made.fisher)


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> Node:
    return inherited(tmp_path_factory.mktemp("site"), int(time.time()))


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three classes that their colour tells apart, in several sizes and formats."""
    folder = tmp_path_factory.mktemp("pictures")
    rng = np.random.default_rng(0)
    for name, colour in {"red things": (200, 40, 40), "grün": (40, 200, 40), "blue": (40, 40, 200)}.items():
        (folder / name).mkdir()
        for number in range(6):
            height, width = rng.integers(8, 40, 2)
            noise = rng.integers(-40, 40, (height, width, 3))
            pixels = (np.array(colour) + noise).clip(0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(folder / name / f"{number}.{('png', 'bmp', 'tif')[number % 3]}")
    return folder


@pytest.fixture(scope="module")
def model(node: Node, pictures: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("models") / "model"
    arguments = ["--bundle", node.bundles["condensed"], "--trust", node.trust, "--data", pictures, "--out", out]
    with pytest.raises(SystemExit, match="0"):
        run_app(app, ["adapt", *map(str, arguments)])
    return out


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    """A command's exit code, what it printed, and what it said on standard error."""

    def run(*arguments: object) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as ended:
            run_app(app, [str(argument) for argument in arguments])
        assert isinstance(ended.value.code, int)
        printed = capsys.readouterr()
        return ended.value.code, printed.out, printed.err

    return run


def refused(answer: tuple[int, str, str], *words: str, code: int = 2) -> None:
    """Nothing but one line that says what is wrong."""
    assert (answer[0], answer[1]) == (code, "")
    assert answer[2].startswith("error: ")
    assert answer[2].count("\n") == 1
    for word in words:
        assert word in answer[2]


def verified(node: Node, form: Form = "condensed") -> VerifiedLearngene:
    return open_bundle(node.bundles[form], node.trust, None)


def test_bundle_packs_what_the_node_committed(node: Node, tmp_path: Path, run: Run) -> None:
    out = tmp_path / "again.learngene"
    code, _, _ = run("bundle", "--config", node.config, "--form", "paper", "--out", out)
    assert code == 0
    assert out.read_bytes() == node.bundles["paper"].read_bytes()
    refused(run("bundle", "--config", node.config, "--form", "paper", "--out", out), "not overwritten")
    refused(
        run("bundle", "--config", node.config, "--form", "paper-front", "--out", tmp_path / "b"), "inherited nothing"
    )
    refused(run("bundle", "--config", node.config, "--form", "tall", "--out", tmp_path / "b"), "'tall'", "condensed")
    empty = tmp_path / "empty"
    initialise(empty, role="individual", data=tmp_path, party="individual-1")
    refused(run("bundle", "--config", empty / "config.toml", "--out", tmp_path / "b"), "never run")
    assert not (empty / "state").exists()


def test_a_model_says_what_it_is_and_predicts_as_the_one_that_was_saved(
    node: Node, model: Path, pictures: Path, tmp_path: Path
) -> None:
    loaded = adapted.load(model)
    description, bundle = loaded.description, verified(node)
    assert description.classes == ("blue", "grün", "red things")
    assert description.pictures == (6, 6, 6)
    assert description.learngene.release == bundle.release_digest
    assert description.learngene.run_id == bundle.release.run_id
    assert description.input == bundle.learngene.architecture.input
    assert description.estimate is not None
    assert sum(description.estimate.correct) == 18  # colours are told apart
    read = own_pictures.read_tree(pictures, description.input)
    again = own_task.adapt_to_pictures(
        bundle, read, IndividualSettings(),
        method=own_task.choose_method(None, "condensed"), folds=0, seed=0, device=torch.device("cpu"),
    )  # fmt: skip
    adapted.save(again, tmp_path / "again")
    expected = again.classifier.probabilities(read.pixels)
    for folder in (model, tmp_path / "again"):
        np.testing.assert_array_equal(adapted.load(folder).classifier.probabilities(read.pixels), expected)
    assert (expected.argmax(1) == read.labels).all()
    np.testing.assert_allclose(expected.sum(1), 1, rtol=1e-5)


def test_a_classifier_is_normalisation_network_and_softmax(node: Node, model: Path, pictures: Path) -> None:
    loaded, tensors = adapted.load(model), verified(node).learngene.tensors
    read = own_pictures.read_tree(pictures, loaded.description.input)
    normalisation = Normalisation(tensors["input.mean"], tensors["input.std"])
    images = DeviceImages.load(read.pixels, read.labels, normalisation, torch.device("cpu"))
    x, _ = images.batch(torch.arange(len(images)))
    with torch.no_grad():
        expected = torch.exp(torch.log_softmax(loaded.classifier.network(x), 1))
    np.testing.assert_allclose(loaded.classifier.probabilities(read.pixels), expected, atol=1e-5)


@pytest.mark.parametrize(("form", "method"), [("condensed", "condensed-eq9-frozen"), ("paper", "paper")])
def test_methods_that_train_are_saved_and_exported_too(
    node: Node, pictures: Path, tmp_path: Path, run: Run, form: Form, method: str
) -> None:
    out, onnx = tmp_path / "model", tmp_path / "model.onnx"
    code, printed, said = run(
        "adapt", "--bundle", node.bundles[form], "--config", node.config, "--data", pictures, "--out", out,
        "--method", method, "--epochs", 3, "--folds", 2, "--set", "batch_size=8",
    )  # fmt: skip
    assert code == 0, said
    assert f"method     {method}" in printed
    loaded = adapted.load(out)
    assert loaded.description.settings["epochs"] == 3
    assert loaded.description.settings["batch_size"] == 8
    assert loaded.description.learngene.form == form
    read = own_pictures.read_tree(pictures, loaded.description.input)
    probabilities = loaded.classifier.probabilities(read.pixels)
    assert np.ptp(probabilities, axis=0).max() > 0.01
    if form == "paper":
        pytest.importorskip("onnxruntime")
        assert run("export", out, "--onnx", onnx, pictures / "blue")[0] == 0
        np.testing.assert_allclose(onnx_run(onnx, read.pixels), probabilities, atol=1e-4)


def onnx_run(path: Path, pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
    """What somebody computes who has nothing but the file and its metadata."""
    import onnxruntime

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    (given,) = session.get_inputs()
    unit = (pixels.transpose(0, 3, 1, 2) / 255).astype(np.float32)
    (found,) = session.run(None, {given.name: unit})
    assert isinstance(found, np.ndarray)
    return found


@pytest.fixture(scope="module")
def onnx_file(model: Path) -> Path:
    pytest.importorskip("onnxruntime")
    out = model.parent / "model.onnx"
    with pytest.raises(SystemExit, match="0"):
        run_app(app, ["export", str(model), "--onnx", str(out)])
    return out


def test_the_onnx_file_needs_nothing_else(model: Path, onnx_file: Path, pictures: Path, run: Run) -> None:
    import onnxruntime

    loaded = adapted.load(model)
    read = own_pictures.read_tree(pictures, loaded.description.input)
    expected = loaded.classifier.probabilities(read.pixels)
    for count in (1, 2, 18):
        np.testing.assert_allclose(onnx_run(onnx_file, read.pixels[:count]), expected[:count], atol=1e-4)
    session = onnxruntime.InferenceSession(onnx_file, providers=["CPUExecutionProvider"])
    meta = session.get_modelmeta().custom_metadata_map
    assert json.loads(meta["classes"]) == list(loaded.description.classes)
    assert json.loads(meta["learngene"])["release"] == loaded.description.learngene.release
    assert [(i.name, i.type, i.shape[1:]) for i in session.get_inputs()] == [("pictures", "tensor(float)", [3, 8, 8])]
    assert [o.name for o in session.get_outputs()] == ["probabilities"]
    # Where a line of our source stood is nobody's business.
    assert b".py" not in onnx_file.read_bytes()
    refused(run("export", model, "--onnx", onnx_file), "not overwritten")


def test_an_export_that_differs_is_not_written(
    model: Path, onnx_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded, data = adapted.load(model), onnx_file.read_bytes()
    pixels = onnx_export.random_pictures(loaded)
    monkeypatch.setattr(onnx_export, "onnx_bytes", lambda _: data)
    found = onnx_export.export(loaded, tmp_path / "same.onnx", pixels)
    assert found is not None
    assert found <= onnx_export.TOLERANCE
    loaded.classifier.mean.add_(0.2)
    with pytest.raises(RunFailedError, match="nothing is written"):
        onnx_export.export(loaded, tmp_path / "other.onnx", pixels)
    data = b"no onnx"
    with pytest.raises(RunFailedError, match="cannot run"):
        onnx_export.export(loaded, tmp_path / "other.onnx", pixels)
    assert [path.name for path in tmp_path.iterdir()] == ["same.onnx"]


def test_without_the_extra_an_export_says_what_to_install(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, run: Run
) -> None:
    monkeypatch.setattr(onnx_export, "installed", lambda name: False)
    refused(run("export", model, "--onnx", tmp_path / "m.onnx"), "pip install 'learngene[onnx]'")


def test_predictions_for_people_and_for_programs_are_the_same(
    model: Path, pictures: Path, tmp_path: Path, run: Run
) -> None:
    one = pictures / "red things" / "0.png"
    code, printed, said = run("predict", model, one, pictures / "grün", "--json", tmp_path / "named.json", "--top", 2)
    assert (code, said) == (0, "")
    named = json.loads((tmp_path / "named.json").read_text())
    assert [entry["file"] for entry in named["pictures"]] == [
        str(path) for path in (one, *sorted((pictures / "grün").iterdir()))
    ]
    assert [entry["top"][0]["class"] for entry in named["pictures"]] == ["red things", *["grün"] * 6]
    rows = [line for line in printed.splitlines() if str(pictures) in line]
    for entry, row in zip(named["pictures"], rows, strict=True):
        (best, second) = entry["top"]
        assert best["probability"] >= second["probability"]
        assert f"{best['class']} " in row
        assert f"{best['probability']:.1%}" in row
        assert f"{second['class']} {second['probability']:.1%}" in row
    loaded = adapted.load(model)
    (expected,) = loaded.classifier.probabilities(own_pictures.read_picture(one, loaded.description.input)[None])
    assert named["pictures"][0]["top"][0]["probability"] == pytest.approx(expected.max(), abs=1e-6)
    code, printed, _ = run("predict", model, one, "--json", "-")
    assert json.loads(printed)["pictures"][0]["top"][0]["class"] == "red things"


def test_a_picture_that_cannot_be_read_is_named(model: Path, tmp_path: Path, run: Run) -> None:
    (tmp_path / "notes.txt").write_text("no picture")
    refused(run("predict", model, tmp_path), "notes.txt cannot be read")
    refused(run("predict", model, tmp_path / "gone.png"), "no file", "gone.png")
    refused(run("predict", tmp_path, tmp_path / "notes.txt"), "is no model")
    refused(run("predict", model), "IMAGES")


def test_an_altered_model_is_not_used(model: Path, tmp_path: Path) -> None:
    description = json.loads((model / adapted.DESCRIPTION).read_text())
    weights = (model / adapted.WEIGHTS).read_bytes()

    def loads(words: str, *, data: bytes = weights, **changes: object) -> None:
        (tmp_path / adapted.DESCRIPTION).write_text(json.dumps(description | changes))
        (tmp_path / adapted.WEIGHTS).write_bytes(data)
        with pytest.raises(InputError, match=words):
            adapted.load(tmp_path)

    changed = bytearray(weights)
    changed[-1] ^= 1
    loads("not the file", data=bytes(changed))
    loads("weights", weights="x" * 64)
    loads("format", format=2)
    loads("extra", surprise=1)
    loads("as many as", classes=["a", "b"])
    loads("does not fit", classes=[*description["classes"], "d"], pictures=[1] * 4, estimate=None)
    loads("does not fit", network="individual")


@pytest.mark.parametrize(("option", "words"), [("--trust", "past its time"), ("--config", "")])
def test_a_bundle_past_its_time_needs_the_ledger_that_committed_it(
    pictures: Path, tmp_path: Path, run: Run, option: str, words: str
) -> None:
    old = inherited(tmp_path / "site", int(time.time()) - LIFE - SKEW - 60)
    path = old.trust if option == "--trust" else old.config
    answer = run(
        "adapt", "--bundle", old.bundles["condensed"], option, path, "--data", pictures, "--out", tmp_path / "m"
    )
    if words:
        refused(answer, words, "condensed.learngene is refused", code=1)
    else:
        assert answer[0] == 0
    assert (tmp_path / "m").exists() == (not words)


def test_nothing_unverified_is_adapted(node: Node, pictures: Path, tmp_path: Path, run: Run) -> None:
    good = bundle_file.read(node.bundles["condensed"])
    flipped = bytearray(good.blob)
    flipped[len(flipped) // 2] ^= 1
    cases: dict[str, tuple[bytes, str]] = {
        "altered": (bundle_file.encode(BundleFile(good.release, good.grant, bytes(flipped))), "digest_mismatch"),
        "short": (node.bundles["condensed"].read_bytes()[:-1], "malformed"),
        "longer": (node.bundles["condensed"].read_bytes() + b"\0", "malformed"),
        "other": (b"no bundle", "malformed"),
    }
    for name, (content, code) in cases.items():
        file = tmp_path / f"{name}.learngene"
        file.write_bytes(content)
        answer = run("adapt", "--bundle", file, "--trust", node.trust, "--data", pictures, "--out", tmp_path / "m")
        refused(answer, str(file), code, code=1)
    nobody = tmp_path / "trust.json"
    TrustStore().with_key(COLLECTIVE.public_hex, "individual", "collective").save(nobody)
    common = ("--data", pictures, "--out", tmp_path / "m")
    refused(run("adapt", "--bundle", node.bundles["condensed"], "--trust", nobody, *common), "unknown_key", code=1)
    refused(run("adapt", "--bundle", node.bundles["condensed"], *common), "--trust or --config")
    refused(run("adapt", "--bundle", tmp_path / "gone", "--trust", node.trust, *common), "cannot read the bundle")
    assert not (tmp_path / "m").exists()


def test_wrong_settings_are_one_line(node: Node, pictures: Path, tmp_path: Path, run: Run) -> None:
    def answer(*more: str) -> tuple[int, str, str]:
        common = ("--bundle", node.bundles["condensed"], "--trust", node.trust, "--data", pictures)
        return run("adapt", *common, "--out", tmp_path / "m", *more)

    refused(answer("--method", "paper"), "'paper' is no method", "condensed-eq9")
    refused(answer("--method", "floor"), "'floor' is no method")
    refused(answer("--set", "penalty=-1"), "penalty")
    refused(answer("--set", "methods=floor"), "NAME=VALUE", "early_stopping")
    refused(answer("--set", "penalty"), "NAME=VALUE")
    refused(answer("--device", "abacus"), "abacus")
    (tmp_path / "m").mkdir()
    refused(answer(), "not overwritten")


def test_a_class_with_one_picture_works_where_it_can(node: Node, pictures: Path, tmp_path: Path, run: Run) -> None:
    (tmp_path / "few").mkdir()
    for number, name in enumerate(("blue", "grün")):
        folder = tmp_path / "few" / name
        folder.mkdir()
        for file in sorted((pictures / name).iterdir())[: number + 1]:
            (folder / file.name).write_bytes(file.read_bytes())
    common = (
        "adapt",
        "--bundle",
        node.bundles["condensed"],
        "--trust",
        node.trust,
        "--data",
        tmp_path / "few",
        "--out",
    )
    code, printed, _ = run(*common, tmp_path / "m")
    assert code == 0
    assert "estimate   none" in printed
    answer = run(*common, tmp_path / "n", "--method", "condensed-eq9", "--set", "early_stopping=2")
    assert answer[0] == 2
    assert "'blue'" in answer[2]
    assert not (tmp_path / "n").exists()


def made(*counts: int) -> OwnPictures:
    """So many pictures of each class, all black."""
    labels = np.repeat(np.arange(len(counts)), counts)
    names = tuple(f"class {number}" for number in range(len(counts)))
    return OwnPictures(names, (), np.zeros((len(labels), 8, 8, 3), np.uint8), labels, ())


@pytest.mark.parametrize("counts", [(2, 2), (2, 30), (5, 5, 5), (3, 4, 11, 7)])
@pytest.mark.parametrize("folds", [2, 5, 10])
def test_parts_leave_pictures_of_every_class_to_learn_from(counts: tuple[int, ...], folds: int) -> None:
    pictures = made(*counts)
    fold = own_task.fold_of(pictures, folds, IndividualSettings(), 0)
    assert fold is not None
    sizes = np.bincount(fold)
    assert len(sizes) == min(folds, len(fold))
    assert np.ptp(sizes) <= 1
    for part in range(len(sizes)):
        assert set(pictures.labels[fold != part]) == set(range(len(counts)))
    for label, count in enumerate(counts):
        assert np.bincount(fold[pictures.labels == label]).max() <= -(-count // len(sizes))
    other = own_task.fold_of(pictures, folds, IndividualSettings(), 1)
    assert sum(counts) < 10 or (fold != other).any()


def test_there_is_no_estimate_where_none_can_be_made() -> None:
    plain, stopping = IndividualSettings(), IndividualSettings(early_stopping=2)
    assert own_task.fold_of(made(1, 5), 5, plain, 0) is None
    assert own_task.fold_of(made(5, 5), 1, plain, 0) is None
    assert own_task.fold_of(made(2, 5), 5, plain, 0) is not None
    assert own_task.fold_of(made(2, 5), 5, stopping, 0) is None
    assert own_task.fold_of(made(3, 5), 5, stopping, 0) is not None


@pytest.mark.parametrize(("correct", "total"), [(0, 7), (7, 7), (3, 7), (51, 60), (1, 2)])
def test_the_interval_agrees_with_scipy(correct: int, total: int) -> None:
    expected = binomtest(correct, total).proportion_ci(0.95, "wilson")
    assert own_task.wilson_interval(correct, total) == pytest.approx((expected.low, expected.high), abs=1e-12)


def test_an_estimate_is_of_models_that_were_not_taught_the_picture(node: Node) -> None:
    """Labels by lot: whoever had seen a picture could name it, who had not can only guess."""
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (60, 8, 8, 3), dtype=np.uint8)
    pictures = OwnPictures(("a", "b"), (), pixels, np.arange(60) % 2, ())
    settings = IndividualSettings(penalty=1e-4)
    model = own_task.adapt_to_pictures(
        verified(node), pictures, settings,
        method=own_task.choose_method(None, "condensed"), folds=5, seed=0, device=torch.device("cpu"),
    )  # fmt: skip
    assert (model.classifier.probabilities(pixels).argmax(1) == pictures.labels).all()
    assert model.description.estimate is not None
    assert binomtest(sum(model.description.estimate.correct), 60).pvalue > 0.01


def test_the_command_line_loads_torch_only_where_it_computes() -> None:
    code = "import sys, individual_node.cli; print(sorted({'torch', 'numpy', 'PIL'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize("command", ["bundle", "adapt", "predict", "export"])
def test_every_command_has_help_with_an_example(run: Run, command: str) -> None:
    code, printed, _ = run(command, "--help")
    assert code == 0
    assert f"individual-node {command} " in printed.split("Options:")[0]
