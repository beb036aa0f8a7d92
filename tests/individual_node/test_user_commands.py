"""From a bundle file and own pictures to a model, its predictions and its ONNX file, as a user types it."""

import functools
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from scipy.stats import binomtest

from individual_node import adapted, image_folder, onnx_export, personal_model
from individual_node.adapting import Opening
from individual_node.cli import app
from individual_node.image_folder import OwnPictures
from individual_node.settings import IndividualSettings
from protocol.commands.init_command import initialise
from protocol.errors import InputError, RunFailedError
from protocol.exchange.collective_endpoint import Withdrawal
from protocol.exchange.verification import VerifiedLearngene
from protocol.learngene.architecture import Form
from protocol.learngene.images import DeviceImages, Normalisation
from protocol.learngene.learngene import Learngene
from protocol.messages import bundle_file
from protocol.messages.bundle_file import BundleFile
from protocol.messages.payloads import LIFE, SKEW
from protocol.trust.trust_file import read_trust, write_trust
from protocol.trust.trust_store import TrustStore
from tests.individual_node.one_picture import read_picture
from tests.protocol.parties import NEW_COLLECTIVE, ROOT, STRANGER, learngene
from tests.two_folders import Done, Folders, make_folders, refused, succeeded, warned
from tests.two_folders import run as run_command

Run = Callable[..., Done]


@dataclass(frozen=True)
class Node:
    """An individual's folder after a round: its configuration, its trust store, and a bundle file of each form."""

    folders: Folders
    bundles: dict[Form, Path]

    @property
    def config(self) -> Path:
        return self.folders.individual

    @property
    def by_trust(self) -> tuple[object, ...]:
        """Options that verify and open a bundle without the node."""
        return "--trust", self.folders.trust, "--root", self.folders.root, *self.folders.encryption


def inherited(folder: Path, at: int) -> Node:
    """As ``individual-node init``, ``learngene trust`` and one round at the time ``at`` (unix s) leave it."""
    folders = make_folders(folder)
    bundles: dict[Form, Path] = {}
    forms: tuple[Form, ...] = ("condensed", "paper")
    for form in forms:
        folders.publish(drawn(form), at=at)
        bundles[form] = folders.exchange(folder / f"{form}.learngene", form, at=at)
    return Node(folders, bundles)


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
    done = run_command(
        app, "adapt", "--bundle", node.bundles["condensed"], *node.by_trust, "--data", pictures, "--out", out
    )
    assert done.code == 0, done
    return out


@pytest.fixture
def run() -> Run:
    """Runs a command of ``individual-node``."""
    return functools.partial(run_command, app)


def verified(node: Node, form: Form = "condensed") -> VerifiedLearngene:
    opened = Opening(node.bundles[form], config=node.config).read().opened
    assert opened is not None
    return opened


def test_bundle_packs_what_the_node_committed(node: Node, tmp_path: Path, run: Run) -> None:
    out = tmp_path / "again.learngene"
    succeeded(run("bundle", "--config", node.config, "--form", "paper", "--out", out))
    assert out.read_bytes() == node.bundles["paper"].read_bytes()
    refused(run("bundle", "--config", node.config, "--form", "paper", "--out", out), "not overwritten")
    refused(
        run("bundle", "--config", node.config, "--form", "paper-front", "--out", tmp_path / "b"), "inherited nothing"
    )
    refused(run("bundle", "--config", node.config, "--form", "tall", "--out", tmp_path / "b"), "'tall'", "condensed")
    empty = tmp_path / "empty"
    initialise(empty, role="individual", data=tmp_path, party="individual-1", root=node.folders.root)
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
    read = image_folder.read_tree(pictures, description.input)
    again = personal_model.adapt_to_pictures(
        bundle, read, IndividualSettings(),
        method=personal_model.choose_method(None, "condensed"), folds=0, seed=0, device=torch.device("cpu"),
    )  # fmt: skip
    adapted.save(again, tmp_path / "again")
    expected = again.classifier.probabilities(read.pixels)
    for folder in (model, tmp_path / "again"):
        np.testing.assert_array_equal(adapted.load(folder).classifier.probabilities(read.pixels), expected)
    assert (expected.argmax(1) == read.labels).all()
    np.testing.assert_allclose(expected.sum(1), 1, rtol=1e-5)


def test_a_classifier_is_normalisation_network_and_softmax(node: Node, model: Path, pictures: Path) -> None:
    loaded, tensors = adapted.load(model), verified(node).learngene.tensors
    read = image_folder.read_tree(pictures, loaded.description.input)
    normalisation = Normalisation(tensors["input.mean"], tensors["input.std"])
    images = DeviceImages.load(read.pixels, read.labels, normalisation, torch.device("cpu"))
    x, _ = images.batch(torch.arange(len(images)))
    with torch.no_grad():
        expected = torch.exp(torch.log_softmax(loaded.classifier.network(x), 1))
    np.testing.assert_allclose(loaded.classifier.probabilities(read.pixels), expected, atol=1e-5)


@pytest.mark.parametrize(
    ("form", "method"),
    [
        ("condensed", "condensed-eq9-frozen"),
        ("condensed", "condensed-eq9-head"),
        ("paper", "paper"),
        ("paper", "paper-head"),
    ],
)
def test_methods_that_train_are_saved_and_exported_too(
    node: Node, pictures: Path, tmp_path: Path, run: Run, form: Form, method: str
) -> None:
    out, onnx = tmp_path / "model", tmp_path / "model.onnx"
    done = run(
        "adapt", "--bundle", node.bundles[form], "--config", node.config, "--data", pictures, "--out", out,
        "--method", method, "--epochs", 3, "--folds", 2, "--set", "batch_size=8", "--set", "view_shifts=1",
    )  # fmt: skip
    assert done.code == 0, done
    assert f"method     {method}" in done.out
    loaded = adapted.load(out)
    assert loaded.description.settings["epochs"] == 3
    assert loaded.description.settings["batch_size"] == 8
    assert loaded.description.learngene.form == form
    read = image_folder.read_tree(pictures, loaded.description.input)
    probabilities = loaded.classifier.probabilities(read.pixels)
    assert np.ptp(probabilities, axis=0).max() > 0.01
    if form == "paper":
        pytest.importorskip("onnxruntime")
        succeeded(run("export", out, "--onnx", onnx, pictures / "blue"))
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
    # A name that a program with paths of bytes in the system's code page would not find.
    out = model.parent / "modèle モデル" / "прогноз.onnx"
    out.parent.mkdir()
    succeeded(run_command(app, "export", model, "--onnx", out))
    assert os.listdir(out.parent) == [out.name]  # no weights beside it, that a copy would forget
    return out


def test_the_onnx_file_needs_nothing_else(model: Path, onnx_file: Path, pictures: Path, run: Run) -> None:
    import onnxruntime

    loaded = adapted.load(model)
    read = image_folder.read_tree(pictures, loaded.description.input)
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
    options = ("--json", tmp_path / "named.json", "--top", 2)
    printed = succeeded(run("predict", model, one, pictures / "grün", *options))
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
    (expected,) = loaded.classifier.probabilities(read_picture(one, loaded.description.input)[None])
    assert named["pictures"][0]["top"][0]["probability"] == pytest.approx(expected.max(), abs=1e-6)
    assert (named["withdrawn"], named["compromised"]) == (False, False)
    printed = succeeded(run("predict", model, one, "--json", "-"))
    assert json.loads(printed)["pictures"][0]["top"][0]["class"] == "red things"


def test_a_picture_that_cannot_be_read_is_named(model: Path, tmp_path: Path, run: Run) -> None:
    (tmp_path / "notes.txt").write_text("no picture")
    refused(run("predict", model, tmp_path), "notes.txt cannot be read")
    refused(run("predict", model, tmp_path / "gone.png"), "gone.png")
    refused(run("predict", tmp_path, tmp_path / "notes.txt"), "is no model")
    refused(run("predict", model), "IMAGES")


def test_bad_pictures_are_named_at_once_and_the_good_ones_served(
    model: Path, pictures: Path, tmp_path: Path, run: Run
) -> None:
    """A pipe among them, whose opening would wait for ever, a file that is cut, and one that is not there."""
    new = tmp_path / "new"
    new.mkdir()
    os.mkfifo(new / "pipe.png")
    good = pictures / "blue" / "0.png"
    (new / "cut.png").write_bytes(good.read_bytes()[:50])
    (new / "good.png").write_bytes(good.read_bytes())
    done = run("predict", model, new, new / "gone.png", "--json", tmp_path / "named.json")
    assert done.code == 2
    assert [word in done.err for word in ("pipe.png", "cut.png", "gone.png", "good.png")] == [True] * 3 + [False]
    assert done.err.count("\n") == 1
    assert [line for line in done.out.splitlines() if "good.png" in line]
    written = json.loads((tmp_path / "named.json").read_text())
    assert [Path(entry["file"]).name for entry in written["pictures"]] == ["good.png"]
    assert [Path(entry["file"]).name for entry in written["unread"]] == ["cut.png", "pipe.png", "gone.png"]
    assert run("predict", model, new / "cut.png", "--json", tmp_path / "none.json").code == 2
    written = json.loads((tmp_path / "none.json").read_text())
    assert (written["pictures"], [Path(entry["file"]).name for entry in written["unread"]]) == ([], ["cut.png"])


def test_names_of_classes_are_the_model_s_whatever_they_look_like(node: Node, tmp_path: Path, run: Run) -> None:
    """Numbers, whose order as names is another than as numbers, and what looks like markup or a code of an emoji."""
    rng, data = np.random.default_rng(0), tmp_path / "[x] pictures"
    colours = {"10": (200, 40, 40), "2": (40, 200, 40), "[red]": (40, 40, 200), ":smile:": (200, 200, 40)}
    for name, colour in colours.items():
        (data / name).mkdir(parents=True)
        for number in range(3):
            noise = rng.integers(-20, 20, (12, 12, 3))
            Image.fromarray((np.array(colour) + noise).clip(0, 255).astype(np.uint8)).save(
                data / name / f"{number}.png"
            )
    given = ("--bundle", node.bundles["condensed"], *node.by_trust, "--data", data, "--folds", 0)
    assert run("adapt", *given, "--out", tmp_path / "m [b]").code == 0
    printed = succeeded(run("predict", tmp_path / "m [b]", *(data / name / "0.png" for name in colours), "--top", 1))
    rows = [line.split() for line in printed.splitlines() if "0.png" in line]
    assert [row[-2] for row in rows] == list(colours)


def test_a_model_of_pictures_of_12_bits_names_such_pictures(node: Node, tmp_path: Path, run: Run) -> None:
    rng, data = np.random.default_rng(0), tmp_path / "pictures"
    for name, grey in {"dark": 600, "light": 3500}.items():
        (data / name).mkdir(parents=True)
        for number in range(3):
            values = (grey + rng.integers(-500, 500, (16, 16))).astype(np.uint16)
            Image.fromarray(values).save(data / name / f"{number}.png")
    given = ("--bundle", node.bundles["condensed"], *node.by_trust, "--data", data, "--folds", 0)
    refused(run("adapt", *given, "--out", tmp_path / "none"), "--bits", "6 of 6", "dark/0.png", "light/2.png")
    assert run("adapt", *given, "--out", tmp_path / "model", "--bits", 12).code == 0
    assert adapted.load(tmp_path / "model").description.bits == 12
    named = json.loads(succeeded(run("predict", tmp_path / "model", data / "dark", data / "light", "--json", "-")))
    assert [entry["top"][0]["class"] for entry in named["pictures"]] == ["dark"] * 3 + ["light"] * 3
    # Pictures that use more of the 16 bits than the model's do can be named too.
    Image.fromarray(values * 16).save(tmp_path / "whole.png")
    refused(run("predict", tmp_path / "model", tmp_path / "whole.png"), "beyond the bits")
    assert run("predict", tmp_path / "model", tmp_path / "whole.png", "--bits", 16).code == 0


def test_attack_what_only_has_a_picture_s_name_is_one_line(
    model: Path, pictures: Path, tmp_path: Path, run: Run
) -> None:
    """In a folder of pictures, and named alone; nothing hangs."""
    good = (pictures / "red things" / "0.png").read_bytes()
    (tmp_path / "page.jpg").write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n")
    (tmp_path / "phone.jpg").write_bytes(b"\x00\x00\x00\x18ftypheic\x00\x00\x00\x00mif1heic")
    os.mkfifo(tmp_path / "pipe.png")
    (tmp_path / "device.png").symlink_to("/dev/zero")
    said = {"page.jpg": "PostScript", "phone.jpg": "save it as JPEG or PNG", "pipe.png": "", "device.png": ""}
    for name, word in said.items():
        folder = tmp_path / f"with {name}"
        folder.mkdir()
        (folder / "0.png").write_bytes(good)
        (tmp_path / name).rename(folder / name)
        refused(run("predict", model, folder / name), name, word)
        with_a_good_one = run("predict", model, folder)
        assert "0.png" in with_a_good_one.out
        refused(replace(with_a_good_one, out=""), name, word)


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
    loads("surprise", surprise=1)
    loads("as many as", classes=["a", "b"])
    loads("does not fit", classes=[*description["classes"], "d"], pictures=[1] * 4, estimate=None)
    loads("does not fit", network="individual")


@pytest.mark.parametrize("vouching", ["trust store", "ledger"])
def test_a_bundle_past_its_time_needs_the_ledger_that_committed_it(
    pictures: Path, tmp_path: Path, run: Run, vouching: str
) -> None:
    old = inherited(tmp_path / "site", int(time.time()) - LIFE - SKEW - 60)
    options = ("--config", old.config) if vouching == "ledger" else old.by_trust
    out = tmp_path / "m"
    done = run("adapt", "--bundle", old.bundles["condensed"], *options, "--data", pictures, "--out", out)
    if vouching == "ledger":
        assert done.code == 0, done
    else:
        refused(done, "past its time", "condensed.learngene is refused (expired)", code=1)
    assert out.exists() == (vouching == "ledger")


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
        for options in (node.by_trust, ("--config", node.config)):
            answer = run("adapt", "--bundle", file, *options, "--data", pictures, "--out", tmp_path / "m")
            refused(answer, str(file), f"({code})", code=1)
    assert not (tmp_path / "m").exists()


def test_nothing_is_adapted_under_the_wrong_keys(node: Node, pictures: Path, tmp_path: Path, run: Run) -> None:
    def answer(*options: object, bundle: Path = node.bundles["condensed"]) -> Done:
        return run("adapt", "--bundle", bundle, *options, "--data", pictures, "--out", tmp_path / "m")

    folders, (option, key, *key_file) = node.folders, node.folders.encryption
    by_root = ("--trust", folders.trust, "--root", folders.root)
    nobody = tmp_path / "trust.json"
    write_trust(nobody, TrustStore(root=folders.root, expires_at=int(time.time()) + 60), ROOT)
    refused(answer("--trust", nobody, "--root", folders.root, *folders.encryption), "unknown_key", code=1)
    stranger = ("--trust", folders.trust, "--root", STRANGER.public_hex)
    refused(answer(*stranger, *folders.encryption), "trust store", "unknown_key", code=1)
    other = folders.other.parent
    theirs = (option, other / "encryption.key", "--key-file", other / "key.secret")
    refused(answer(*by_root, *theirs), "wrong_audience", "encryption key", code=1)
    refused(answer("--config", folders.other), "no ledger")
    refused(answer("--config", folders.collective), "individual")
    refused(answer(*by_root, option, other / "encryption.key", *key_file), "another key file")
    refused(answer(*by_root, option, tmp_path / "gone.key", *key_file), "no encryption key")
    refused(answer(*by_root), "--encryption-key")
    refused(answer("--trust", folders.trust, option, key, *key_file), "--root")
    refused(answer("--trust", folders.trust, "--root", "abc", option, key, *key_file), "64 hexadecimal")
    refused(answer("--config", node.config, "--root", folders.root), "give it alone")
    refused(answer(*by_root, "--config", node.config), "either --config")
    refused(answer(), "either --config")
    refused(answer("--config", node.config, bundle=tmp_path / "gone"), "cannot read the bundle")
    assert not (tmp_path / "m").exists()


def test_every_use_of_what_was_withdrawn_says_so(pictures: Path, tmp_path: Path, run: Run) -> None:
    node = inherited(tmp_path / "site", int(time.time()))
    folders, picture = node.folders, pictures / "blue" / "0.png"
    common = ("--bundle", node.bundles["condensed"], "--data", pictures, "--folds", 0)
    by_node, by_trust = tmp_path / "by-node", tmp_path / "by-trust"
    for options, out in ((("--config", node.config), by_node), (node.by_trust, by_trust)):
        done = run("adapt", *common, *options, "--out", out)
        assert (done.code, "withdrawn" in done.err) == (0, False), done
    assert adapted.load(by_node).description.node == str(node.config)
    assert adapted.load(by_trust).description.node is None
    succeeded(run("predict", by_node, picture))

    release = adapted.load(by_node).description.learngene.release
    folders.collective_endpoint().withdraw(release)
    notice = folders.collective_endpoint().answer_request(
        folders.individual_endpoint().request("condensed", int(time.time()), os.urandom(16)), int(time.time())
    )
    assert isinstance(notice, Withdrawal)
    # Nobody has told the individual yet.
    succeeded(run("predict", by_node, picture))
    folders.individual_endpoint().accept_abort(notice.abort, int(time.time()))

    words = ("withdrawn by the collective", release[:16])
    assert "blue" in warned(run("predict", by_node, picture), *words)
    warned(run("predict", by_node, picture, "--json", tmp_path / "named.json"), *words)
    assert json.loads((tmp_path / "named.json").read_text())["withdrawn"] is True
    assert json.loads(warned(run("predict", by_node, picture, "--json", "-"), *words))["withdrawn"] is True
    warned(run("bundle", "--config", node.config, "--out", tmp_path / "again.learngene"), *words)
    again = run("adapt", *common, "--config", node.config, "--out", tmp_path / "again")
    assert again.code == 0
    assert again.err.splitlines()[-1].startswith("warning: this learngene was withdrawn by the collective")
    # Only the other form was not withdrawn, and only a node has a ledger to ask.
    succeeded(run("bundle", "--config", node.config, "--form", "paper", "--out", tmp_path / "paper.learngene"))
    succeeded(run("predict", by_trust, picture))
    if onnx_export.installed("onnxruntime"):
        warned(run("export", by_node, "--onnx", tmp_path / "m.onnx"), *words)

    # A node that is gone or closed to us is nothing to talk about; one that is broken is.
    state = node.config.parent / "state"
    state.chmod(0o755)
    succeeded(run("predict", by_node, picture))
    state.chmod(0o700)
    (state / "ledger.db").rename(state / "moved.db")
    succeeded(run("predict", by_node, picture))
    assert not (state / "ledger.db").exists()
    (state / "ledger.db").write_bytes(b"no database" * 100)
    for side in ("ledger.db-wal", "ledger.db-shm"):
        (state / side).unlink(missing_ok=True)
    warned(run("predict", by_node, picture), "cannot say whether", "ledger")
    node.config.unlink()
    succeeded(run("predict", by_node, picture))


def test_every_use_of_what_a_compromised_key_signed_says_so(pictures: Path, tmp_path: Path, run: Run) -> None:
    """The theft became known after the learngene was inherited and the model was made."""
    node = inherited(tmp_path / "site", int(time.time()))
    folders, picture, model = node.folders, pictures / "blue" / "0.png", tmp_path / "model"
    common = ("--bundle", node.bundles["condensed"], "--data", pictures, "--folds", 0, "--config", node.config)
    assert run("adapt", *common, "--out", model).code == 0
    origin = adapted.load(model).description.learngene
    believed = read_trust(folders.trust, root=folders.root)
    for number, reason in enumerate(("retired", "superseded", "compromised")):
        store = believed.without_key(origin.collective, reason).with_key(  # type: ignore[arg-type]
            NEW_COLLECTIVE.public_hex, "collective", "collective"
        )
        # Each later than the one before: a node that remembers a version takes no other one with its number.
        for _ in range(number):
            store = store.with_expiry(store.expires_at)
        write_trust(folders.trust, store, ROOT)
        packed = tmp_path / f"{reason}.learngene"
        uses = (("predict", model, picture), ("bundle", "--config", node.config, "--out", packed))
        for use in uses:
            if reason == "compromised":
                warned(run(*use), "revoked as compromised", "a thief may have made it", origin.release[:16])
            else:
                succeeded(run(*use))
        # What such a key signed is not verified at all any more, so that nothing new grows from it.
        refused(run("adapt", *common, "--out", tmp_path / "again"), "(revoked_key)", code=1)
    named = json.loads(warned(run("predict", model, picture, "--json", "-"), "compromised"))
    assert (named["withdrawn"], named["compromised"]) == (False, True)
    if onnx_export.installed("onnxruntime"):
        warned(run("export", model, "--onnx", tmp_path / "m.onnx"), "revoked as compromised")
    # Where the trust store cannot be believed, nothing is known, and that is said.
    write_trust(folders.trust, TrustStore(root=STRANGER.public_hex, expires_at=2**40), STRANGER)
    warned(run("predict", model, picture), "cannot say whether", "trust store")
    folders.trust.unlink()
    warned(run("predict", model, picture), "cannot say whether", "no trust store")


def test_a_model_that_was_saved_without_a_node_is_read(model: Path, tmp_path: Path) -> None:
    description = json.loads((model / adapted.DESCRIPTION).read_text())
    del description["node"]
    (tmp_path / adapted.DESCRIPTION).write_text(json.dumps(description))
    (tmp_path / adapted.WEIGHTS).write_bytes((model / adapted.WEIGHTS).read_bytes())
    assert adapted.load(tmp_path).description == adapted.load(model).description


def test_wrong_settings_are_one_line(node: Node, pictures: Path, tmp_path: Path, run: Run) -> None:
    def answer(*more: str) -> Done:
        common = ("--bundle", node.bundles["condensed"], *node.by_trust, "--data", pictures)
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
    common = ("adapt", "--bundle", node.bundles["condensed"], *node.by_trust, "--data", tmp_path / "few", "--out")
    done = run(*common, tmp_path / "m")
    assert done.code == 0
    assert "estimate   none" in done.out
    done = run(*common, tmp_path / "n", "--method", "condensed-eq9", "--set", "early_stopping=2")
    assert done.code == 2
    assert "'blue'" in done.err
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
    fold = personal_model.fold_of(pictures, folds, IndividualSettings(), 0)
    assert fold is not None
    sizes = np.bincount(fold)
    assert len(sizes) == min(folds, len(fold))
    assert np.ptp(sizes) <= 1
    for part in range(len(sizes)):
        assert set(pictures.labels[fold != part]) == set(range(len(counts)))
    for label, count in enumerate(counts):
        assert np.bincount(fold[pictures.labels == label]).max() <= -(-count // len(sizes))
    other = personal_model.fold_of(pictures, folds, IndividualSettings(), 1)
    assert sum(counts) < 10 or (fold != other).any()


def test_there_is_no_estimate_where_none_can_be_made() -> None:
    plain, stopping = IndividualSettings(), IndividualSettings(early_stopping=2)
    assert personal_model.fold_of(made(1, 5), 5, plain, 0) is None
    assert personal_model.fold_of(made(5, 5), 1, plain, 0) is None
    assert personal_model.fold_of(made(2, 5), 5, plain, 0) is not None
    assert personal_model.fold_of(made(2, 5), 5, stopping, 0) is None
    assert personal_model.fold_of(made(3, 5), 5, stopping, 0) is not None


@pytest.mark.parametrize(("correct", "total"), [(0, 7), (7, 7), (3, 7), (51, 60), (1, 2)])
def test_the_interval_agrees_with_scipy(correct: int, total: int) -> None:
    expected = binomtest(correct, total).proportion_ci(0.95, "wilson")
    assert personal_model.wilson_interval(correct, total) == pytest.approx((expected.low, expected.high), abs=1e-12)


def test_an_estimate_is_of_models_that_were_not_taught_the_picture(node: Node) -> None:
    """Labels by lot: whoever had seen a picture could name it, who had not can only guess."""
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (60, 8, 8, 3), dtype=np.uint8)
    pictures = OwnPictures(("a", "b"), (), pixels, np.arange(60) % 2, ())
    settings = IndividualSettings(penalty=1e-4)
    model = personal_model.adapt_to_pictures(
        verified(node), pictures, settings,
        method=personal_model.choose_method(None, "condensed"), folds=5, seed=0, device=torch.device("cpu"),
    )  # fmt: skip
    assert (model.classifier.probabilities(pixels).argmax(1) == pictures.labels).all()
    assert model.description.estimate is not None
    assert binomtest(sum(model.description.estimate.correct), 60).pvalue > 0.01


def test_the_command_line_loads_torch_only_where_it_computes() -> None:
    code = "import sys, individual_node.cli; print(sorted({'torch', 'numpy', 'PIL'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize("command", ["request", "inherit", "bundle", "adapt", "predict", "export"])
def test_every_command_has_help_with_an_example(run: Run, command: str) -> None:
    printed = succeeded(run(command, "--help"))
    assert f"individual-node {command} " in printed.split("Options:")[0]
