"""Tests of the individual's network: built from the learngene's own description, each task's from its own generator."""

from itertools import pairwise

import numpy as np
import pytest
import torch

from individual_node.reconstruction import IndividualNetwork, IndividualNetworks, own_blocks, own_widths, reconstruct
from individual_node.settings import OwnLayers
from protocol.errors import InputError
from protocol.learngene.architecture import Architecture, BlockRole, Form
from protocol.learngene.network import block_tensors
from tests.individual_node.made import ARCHITECTURES, WAYS, architecture, blocks, generators, learngene

FORMS: tuple[Form, ...] = ("condensed", "paper", "paper-middle", "paper-front")


def parameters_of(model: IndividualNetworks, index: int) -> list[torch.Tensor]:
    return [p.detach().chunk(model.networks)[index] for p in model.parameters()]


@pytest.mark.parametrize("form", FORMS)
def test_the_network_is_built_from_the_learngenes_own_description(form: Form) -> None:
    gene = learngene(form)
    model = reconstruct(gene.architecture, gene, ways=WAYS, generators=generators(0, 1))
    front, back = own_blocks(gene.architecture)
    assert (len(front), len(back)) == {"paper": (4, 0), "paper-middle": (2, 2), "paper-front": (0, 4)}.get(form, (0, 0))
    assert len(model.blocks) == len(front) + len(gene.architecture.blocks) + len(back)
    for name, tensor in block_tensors(model.inherited).items():
        for part in tensor.chunk(2):
            np.testing.assert_array_equal(part.detach().numpy(), gene.tensors[name])
    assert model(torch.randn(4, 2 * 3, 16, 16)).shape == (4, 2, WAYS)


@pytest.mark.parametrize(
    ("role", "inherited", "front", "back"),
    [
        ("top", (512, 512, 512, 512), (64, 128, 256, 512), ()),
        ("middle", (256, 256, 256, 512), (128, 256), (512, 512)),
        ("front", (3, 64, 64, 128), (), (128, 128, 256, 512)),
        ("top", (96, 96, 96, 96), (12, 24, 48, 96), ()),
        ("middle", (96, 96, 96, 96), (48, 96), (96, 96)),
        ("front", (3, 96, 96, 96), (), (96, 96, 96, 96)),
    ],
)
def test_three_inherited_blocks_make_the_papers_seven_which_pool_as_often(
    role: BlockRole, inherited: tuple[int, ...], front: tuple[int, ...], back: tuple[int, ...]
) -> None:
    described = architecture("paper", *blocks(role, inherited), side=32)
    assert own_widths(described) == (front, back)
    chain = [*(parts := own_blocks(described))[0], *described.blocks, *parts[1]]
    assert len(chain) == 7
    assert sum(block.pool for block in chain) == 4  # a 2x2 map, as in appendix figure 1
    assert all(before.out_channels == after.in_channels for before, after in pairwise(chain))


@pytest.mark.parametrize("role", ["top", "middle", "front"])
@pytest.mark.parametrize(("pools", "side"), [(0, 8), (1, 32), (3, 8), (3, 32), (5, 32), (6, 84)])
def test_the_own_blocks_leave_a_map_to_halve(role: BlockRole, pools: int, side: int) -> None:
    described = architecture("paper", *blocks(role, (3 if role == "front" else 8, *[8] * 6), pools), side=side)
    model = reconstruct(described, None, ways=WAYS, generators=generators(0))
    assert model(torch.randn(2, 3, side, side)).shape == (2, 1, WAYS)


def test_depth_and_width_of_the_own_layers_can_be_chosen() -> None:
    described = ARCHITECTURES["paper-middle"]
    own = OwnLayers(front=(5, 6, 8), back=(7,), hidden=11)
    model = reconstruct(described, None, ways=WAYS, generators=generators(0), own=own)
    assert [block.conv.out_channels for block in model.blocks] == [5, 6, 8, 8, 8, 7]
    assert [tuple(p.shape[:2]) for n, p in model.classifier.named_parameters() if n.endswith("weight")] == [
        (11, model.features),
        (11, 11),
        (WAYS, 11),
    ]
    assert model(torch.randn(2, 3, 16, 16)).shape == (2, 1, WAYS)
    for form in FORMS:
        deeper = reconstruct(ARCHITECTURES[form], None, ways=WAYS, generators=generators(0), own=OwnLayers(back=(9, 5)))
        assert [block.conv.out_channels for block in deeper.blocks][-2:] == [9, 5]
        assert deeper(torch.randn(2, 3, 16, 16)).shape == (2, 1, WAYS)


def test_own_blocks_that_do_not_meet_the_inherited_ones_are_refused_and_both_shapes_are_named() -> None:
    with pytest.raises(InputError, match=r"\[n, 6, h, w\].*\(8, 8, 3, 3\) takes \[n, 8, h, w\]: end own_front with 8"):
        own_blocks(ARCHITECTURES["paper"], OwnLayers(front=(4, 6)))
    with pytest.raises(InputError, match=r"\[n, 3, h, w\].*takes \[n, 8, h, w\]"):
        own_blocks(ARCHITECTURES["paper-middle"], OwnLayers(front=()))


@pytest.mark.parametrize(
    "described",
    [
        ARCHITECTURES["condensed"],
        ARCHITECTURES["paper-front"],
        architecture("paper", *blocks("front", (3, 8))),
    ],
)
def test_nothing_can_stand_in_front_of_a_block_that_takes_the_image(described: Architecture) -> None:
    with pytest.raises(
        InputError, match=r"own_front \(8,\) has no place: .*\(8, 3, 3, 3\) takes the image's 3 channels"
    ):
        own_blocks(described, OwnLayers(front=(8,)))


def test_the_initial_weights_of_a_task_depend_on_the_task_alone() -> None:
    gene = learngene()
    first = reconstruct(gene.architecture, gene, ways=WAYS, generators=generators(0, 1, 2))
    again = reconstruct(gene.architecture, gene, ways=WAYS, generators=generators(2, 1))
    for a, b in ((0, 2), (1, 1)):
        for one, other in zip(parameters_of(again, a), parameters_of(first, b), strict=True):
            assert torch.equal(one, other)


def test_different_tasks_start_from_different_own_layers() -> None:
    gene = learngene()
    model = reconstruct(gene.architecture, gene, ways=WAYS, generators=generators(0, 1))
    assert not torch.equal(*model.classifier[0].weight.chunk(2))


def test_from_scratch_inherits_nothing() -> None:
    gene = learngene()
    model = reconstruct(gene.architecture, None, ways=WAYS, generators=generators(0))
    for name, tensor in block_tensors(model.inherited).items():
        if name.endswith("conv.weight"):
            assert not np.allclose(tensor.detach().numpy(), gene.tensors[name])


@pytest.mark.parametrize("form", FORMS)
def test_one_of_the_networks_by_itself_computes_what_it_computes_beside_the_others(form: Form) -> None:
    gene = learngene(form)
    joint = reconstruct(gene.architecture, gene, ways=WAYS, generators=generators(0, 1, 2)).eval()
    x = torch.randn(5, 3, 16, 16)
    beside, mirrored = (
        joint(torch.cat([torch.randn_like(x), picture, torch.randn_like(x)], 1))[:, 1] for picture in (x, x.flip(3))
    )
    single = joint.network(1)
    torch.testing.assert_close(single(x), (beside + mirrored) / 2)
    torch.testing.assert_close(single(x), single(x.flip(3)))
    front, inherited, head = single.parts()
    torch.testing.assert_close(head(torch.nn.Sequential(*inherited)(front(x))), beside)
    assert [block.conv.weight.shape for block in inherited] == [
        (block.out_channels, block.in_channels, 3, 3) for block in gene.architecture.blocks
    ]


@pytest.mark.parametrize("form", FORMS)
def test_the_views_of_a_network_enter_and_leave_its_last_part(form: Form) -> None:
    """The last part: own layers behind the inherited ones, else the inherited ones, of a condensed one its top."""
    gene = learngene(form)
    joint = reconstruct(gene.architecture, gene, ways=WAYS, generators=generators(0, 1)).eval()
    x = torch.randn(5, 6, 16, 16)
    handover = {"condensed": 1, "paper": 4, "paper-middle": 4, "paper-front": 2}[form]
    assert len(joint.blocks) - handover == (4 if form == "paper-front" else 2)
    views = joint.views(x)
    for network, part in enumerate(x.chunk(2, 1)):
        front, inherited, _ = joint.network(network).parts()
        behind = joint.network(network).side_by_side.blocks[len(front) + len(inherited) :]
        chain = [*front, *inherited, *behind]
        for view, chosen in zip(views, (chain[:handover], chain), strict=True):
            both = sum(torch.nn.Sequential(*chosen)(picture) for picture in (part, part.flip(3)))
            assert isinstance(both, torch.Tensor)
            torch.testing.assert_close(view[network], both.flatten(1).sqrt())


def test_one_of_the_networks_shares_the_memory_of_all() -> None:
    joint = reconstruct(ARCHITECTURES["paper"], None, ways=WAYS, generators=generators(0, 1))
    single, x = joint.network(1), torch.randn(2, 3, 16, 16)
    before = single(x)
    joint.train()(torch.randn(8, 6, 16, 16))  # moves BatchNorm's running statistics
    with torch.no_grad():
        for parameter in joint.parameters():
            parameter.mul_(1.5)
    assert not torch.allclose(single(x), before)
    torch.testing.assert_close(single(x), joint.eval().predict(torch.cat([x, x], 1))[:, 1])


def test_a_saved_state_makes_the_same_network_again() -> None:
    own = OwnLayers(front=(6, 8), back=(5,), hidden=7)
    single = reconstruct(ARCHITECTURES["paper"], None, ways=WAYS, generators=generators(0, 1), own=own).network(1)
    again = IndividualNetwork(ARCHITECTURES["paper"], ways=WAYS, own=own).eval()
    again.load_state_dict(single.state_dict())
    x = torch.randn(2, 3, 16, 16)
    torch.testing.assert_close(again(x), single(x))
