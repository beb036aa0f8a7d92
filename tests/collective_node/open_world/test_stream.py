"""Tests of the stream: thresholds, and base classes that no task teaches."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from collective_node.evolution import Evolution
from collective_node.network.expandable_network import output_weights
from collective_node.open_world.stream import Stream, _responses
from collective_node.records import Named
from tests.collective_node.made_evolution import CLASSES, CYCLES, SETTINGS, evolution, truth


def stream_of(made: Evolution) -> Stream:
    assert made.open_world is not None
    return made.open_world.stream


def test_the_threshold_is_calibrated_on_held_out_known_images(tmp_path: Path) -> None:
    settings = CYCLES.model_copy(update={"threshold": None, "keep_known": 0.5})
    made = evolution(tmp_path / "state", settings)
    collective, _ = evolution(tmp_path / "tasks").run()
    stream = stream_of(made)
    recognition = stream.recognise(collective, 0, "max-logit")
    network = collective.network.eval()
    with torch.no_grad():
        largest = network(made.evaluation.heldout.batch(torch.arange(len(made.evaluation.heldout)))[0]).amax(1)
    kept = (-largest.double() <= recognition.threshold + 1e-6).double().mean()
    assert 0.5 <= kept <= 0.5 + 2 / len(largest)


def test_images_of_named_classes_that_were_kept_back_calibrate_it_too(tmp_path: Path) -> None:
    settings = CYCLES.model_copy(update={"threshold": None, "keep_known": 0.5, "calibration_share": 0.5})
    made = evolution(tmp_path / "state", settings)
    stream = stream_of(made)
    collective, _ = evolution(tmp_path / "tasks").run()
    assert made.open_world is not None
    rows = [row for row, name in enumerate(truth().stream_names) if name == "class 8"]
    new = made.open_world.add_named(collective, Named(rows=rows, names=["class 8"] * len(rows)))
    collective.learn_classes(new)
    assert len(collective.calibration) == len(rows) // 2
    network, heldout = collective.network.eval(), made.evaluation.heldout
    with torch.no_grad():
        known = -network(heldout.batch(torch.arange(len(heldout)))[0]).amax(1).double()
        named = -network(collective.images.batch(collective.calibration)[0]).amax(1).double()
    pool = torch.cat([known, named]).sort().values
    threshold = stream.recognise(collective, 0, "max-logit").threshold
    assert threshold == pytest.approx(float(pool[(len(pool) + 1) // 2 - 1]), abs=1e-5)
    without = replace(collective, calibration=torch.zeros(0, dtype=torch.int64))
    alone = stream.recognise(without, 0, "max-logit").threshold
    assert alone == pytest.approx(float(known.sort().values[(len(known) + 1) // 2 - 1]), abs=1e-5)


def test_a_given_threshold_is_for_the_score_of_the_settings_alone(tmp_path: Path) -> None:
    made = evolution(tmp_path / "state", CYCLES.model_copy(update={"threshold": -12.5}))
    collective, _ = evolution(tmp_path / "tasks").run()
    stream = stream_of(made)
    assert stream.recognise(collective, 0, "max-logit").threshold == -12.5
    assert 0 <= stream.recognise(collective, 0, "msp").threshold <= 1


def test_a_base_class_that_no_task_teaches_is_in_no_stream_and_can_be_named(tmp_path: Path) -> None:
    """As the paper's data division has it: it is neither known nor of the open world."""
    made = evolution(tmp_path / "state", CYCLES.model_copy(update={"tasks": 3}))
    taught = {number for task in made.plan.sequence for number in task}
    untaught = {f"class {number}" for number in range(CLASSES) if number not in taught}
    assert len(untaught) == 2
    assert untaught <= set(truth().stream_names)
    met = {truth().stream_names[row] for part in stream_of(made).parts for row in part}
    assert met == set(truth().stream_names) - untaught
    # Without the truth an annotator may come upon one, and it is new then.
    collective, _ = evolution(tmp_path / "tasks", SETTINGS.model_copy(update={"tasks": 3})).run()
    name = min(untaught)
    assert collective.add_named(Named(rows=[0, 1], names=[name.upper()] * 2), np.zeros((2, 32, 32, 3), np.uint8)) == [
        int(name.split()[1])
    ]


@pytest.mark.parametrize("classifier", ["mlp", "linear", "cosine"])
def test_the_scores_see_what_the_logits_are_linear_in(tmp_path: Path, classifier: str) -> None:
    """A distance to decision boundaries (fDBD) needs weights that belong to the features; also after new outputs."""
    collective, _ = evolution(tmp_path / "state", SETTINGS.model_copy(update={"classifier": classifier})).run()
    collective.classes.append("class 8")
    collective.learn_classes([8])
    network = collective.network
    with torch.no_grad():
        responses = _responses(network, collective.images)
        logits = responses.features @ output_weights(network.classifier).T
        constant = network.classifier[-1].bias if classifier != "cosine" else torch.zeros(9)
        torch.testing.assert_close(logits + constant, responses.logits, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(
            responses.logits,
            network.eval()(collective.images.batch(torch.arange(len(collective.images)))[0]),
            rtol=1e-2,
            atol=1e-2,
        )
    if classifier == "cosine":
        torch.testing.assert_close(responses.features.norm(dim=1), torch.ones(len(responses)))
