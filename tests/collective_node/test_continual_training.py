"""Tests of the strategies against forgetting."""

from pathlib import Path

from collective_node.continual_training import StepEvents, anchor, train
from protocol.node.events import Events
from tests.collective_node.made_evolution import CLASSES, SETTINGS, evolution


def test_ewc_holds_the_weights_that_mattered(tmp_path: Path) -> None:
    """Of two trainings on the same batches, the one with the penalty stays nearer, measured by what it holds."""
    settings = SETTINGS.model_copy(update={"tasks": 1, "ewc": 1e6, "expansion": (), "layers": 3})
    moved = {}
    for strategy in ("none", "ewc"):
        collective, _ = evolution(tmp_path / strategy, settings).run()
        anchor(collective, collective.known, settings)
        held = collective.ewc
        assert held is not None
        new = [number for number in range(CLASSES) if number not in collective.known][:2]
        collective.learn_classes(new)
        events = StepEvents(Events(tmp_path / f"{strategy}-steps.jsonl"), "task", "two more classes")
        trained = train(collective, new, 1.0, strategy, settings, events)
        assert (trained.retain_weight is not None) == (strategy == "ewc")
        now = {name: value.detach() for name, value in collective.network.named_parameters()}
        moved[strategy] = sum(
            float((held.fisher[name] * (now[name][: len(anchors)] - anchors).square()).sum())
            for name, anchors in held.anchors.items()
        )
    assert moved["ewc"] < 0.8 * moved["none"]
