"""What is drawn for a batch, and how images are turned."""

import numpy as np
import pytest
import torch

from collective_node.augmentation import Augmentation, AugmentationPlan, Augmenter, turned
from collective_node.mixing import Mixer
from collective_node.random_states import RandomStates
from protocol.learngene.images import CropAndFlip

EVERYTHING = AugmentationPlan(operations=2, magnitude=5.0, turned=0.5, mixer=Mixer(1.0, 3))


def drawn(plan: AugmentationPlan, batches: int = 3) -> list[list[Augmentation]]:
    augmenter = Augmenter(plan, RandomStates(0))
    return [augmenter.draw([4, 6]) for _ in range(batches)]


def test_images_are_turned_as_torch_turns_them() -> None:
    x, turns = torch.randn(9, 3, 5, 5), torch.arange(9) % 4
    found = turned(x.clone(), turns)
    for image, quarter, before in zip(found, turns.tolist(), x, strict=True):
        assert torch.equal(image, torch.rot90(before, quarter, (1, 2)))


def test_crops_and_mirroring_are_the_same_under_every_plan() -> None:
    states = RandomStates(0)
    for one, other in zip(drawn(AugmentationPlan()), drawn(EVERYTHING), strict=True):
        crop = CropAndFlip.draw(10, states["augmentation"])
        for parts in (one, other):
            assert torch.equal(torch.cat([part.crop.offsets for part in parts], 1), crop.offsets)
            assert torch.equal(torch.cat([part.crop.flip for part in parts]), crop.flip)


def test_without_a_plan_only_crops_and_mirroring_change_images() -> None:
    x, nothing = torch.randn(4, 3, 8, 8), torch.zeros(3)
    for parts in drawn(AugmentationPlan()):
        assert (parts[0].colours, parts[0].turns, parts[0].mix) == (None, None, None)
        assert torch.equal(parts[0](x, nothing, nothing + 1), parts[0].crop(x))


@pytest.mark.parametrize(("share", "counts"), [(0.5, [2, 3]), (0.99, [3, 5]), (0.1, [0, 0])])
def test_a_share_of_each_part_is_turned_and_one_image_always_stands_upright(share: float, counts: list[int]) -> None:
    seen = set()
    for parts in drawn(AugmentationPlan(turned=share), batches=20):
        for part, count in zip(parts, counts, strict=True):
            assert part.turns is not None
            assert int((part.turns > 0).sum()) == count
            seen |= set(part.turns.tolist())
    assert seen == ({0, 1, 2, 3} if sum(counts) else {0})


def test_one_share_and_one_layer_are_drawn_for_a_batch_and_partners_within_each_part() -> None:
    mixes = [[part.mix for part in parts] for parts in drawn(EVERYTHING, batches=30)]
    for first, second in mixes:
        assert first is not None
        assert second is not None
        assert (first.share, first.layer) == (second.share, second.layer)
        assert sorted(first.partners.tolist()) == list(range(4))
        assert sorted(second.partners.tolist()) == list(range(6))
    assert {first.layer for first, _ in mixes if first is not None} == {0, 1, 2}
    assert len({first.share for first, _ in mixes if first is not None}) == 30


@pytest.mark.parametrize("alpha", [0.2, 1.0])
def test_shares_have_the_moments_of_the_beta_distribution(alpha: float) -> None:
    generator, shares = torch.Generator(), np.random.default_rng(0)
    found = np.array([Mixer(alpha).draw([1], generator, shares)[0].share for _ in range(4000)])
    assert found.mean() == pytest.approx(0.5, abs=0.03)
    assert found.var() == pytest.approx(1 / (4 * (2 * alpha + 1)), rel=0.1)


def test_the_seed_and_nothing_else_decides_what_is_drawn() -> None:
    def marks(batches: list[list[Augmentation]]) -> list[object]:
        parts = [part for batch in batches for part in batch]
        assert all(part.colours is not None and part.turns is not None and part.mix is not None for part in parts)
        return [
            (part.colours.strengths.tolist(), part.turns.tolist(), part.mix.share, part.mix.partners.tolist())
            for part in parts
            if part.colours is not None and part.turns is not None and part.mix is not None
        ]

    np.random.seed(1)
    torch.manual_seed(1)
    first = marks(drawn(EVERYTHING))
    np.random.seed(2)
    torch.manual_seed(2)
    assert marks(drawn(EVERYTHING)) == first
