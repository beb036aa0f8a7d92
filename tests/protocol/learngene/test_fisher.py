"""Tests of the Fisher diagonal: against per-sample autograd in float64, in expectation, and of what it costs."""

import gc
import math
import weakref
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from itertools import repeat

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from protocol.learngene.architecture import Block
from protocol.learngene.fisher import (
    convolution_by_pairs,
    convolution_by_unfolding,
    fisher_diagonal,
    fisher_of_network,
    linear_squares,
    pairs_are_cheaper,
    products_by_pairs,
)
from protocol.learngene.learngene import Estimator
from protocol.learngene.network import ConvolutionBlock, block_tensors, build_blocks, layers_of

CLASSES = 4


def away_from_initial(blocks: Sequence[ConvolutionBlock]) -> None:
    """Statistics and affine parameters that are not the ones a BatchNorm begins with."""
    for block in blocks:
        nn.init.uniform_(block.norm.weight, 0.5, 1.5)
        nn.init.normal_(block.norm.bias)
        nn.init.normal_(block.norm.running_mean)
        nn.init.uniform_(block.norm.running_var, 0.5, 2)


def network(seed: int = 0) -> tuple[list[ConvolutionBlock], nn.Module]:
    """Three blocks on 8x8 images with statistics and affine parameters away from their initial values."""
    torch.manual_seed(seed)
    blocks = build_blocks(
        [
            Block(role="stem", in_channels=3, out_channels=5, pool=True),
            Block(role="stem", in_channels=5, out_channels=6, pool=True),
            Block(role="top", in_channels=6, out_channels=4, pool=True),
        ]
    ).double()
    head = nn.Sequential(nn.Flatten(), nn.Linear(4, CLASSES)).double()
    away_from_initial(layers_of(blocks))
    return list(blocks.eval()), head.eval()


def whole_network(seed: int = 0, *, hidden: int = 7) -> nn.Sequential:
    """The same blocks and a classifier with two hidden layers and dropout, as the collective's."""
    blocks, _ = network(seed)
    classifier = nn.Sequential(
        nn.Flatten(),
        nn.Linear(4, hidden),
        nn.ReLU(),
        nn.Dropout(0.5),
        nn.Linear(hidden, hidden),
        nn.ReLU(),
        nn.Dropout(0.5),
        nn.Linear(hidden, CLASSES),
    ).double()
    return nn.Sequential(OrderedDict(blocks=nn.Sequential(*blocks), classifier=classifier)).eval()


def by_autograd(
    model: Callable[[Tensor], Tensor], parameters: Mapping[str, Tensor], x: Tensor, estimator: Estimator, labels: Tensor
) -> dict[str, Tensor]:
    """The definition: one gradient per image and label, squared, weighted, averaged."""
    total = {name: torch.zeros_like(t) for name, t in parameters.items()}
    for image, label in zip(x, labels, strict=True):
        log_likelihood = model(image[None]).log_softmax(1)[0]
        for c in range(CLASSES):
            weight = log_likelihood[c].exp().item() if estimator == "exact" else float(c == int(label))
            found = torch.autograd.grad(log_likelihood[c], list(parameters.values()), retain_graph=True)
            for name, gradient in zip(parameters, found, strict=True):
                total[name] += weight * gradient.square() / len(x)
    return total


def weights_of(blocks: Sequence[ConvolutionBlock]) -> dict[str, Tensor]:
    """The blocks' parameters by the blob's names, without the statistics."""
    return {name: tensor for name, tensor in block_tensors(blocks).items() if tensor.requires_grad}


def assert_same(found: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> None:
    """Equal but for the rounding of float64, and nowhere 0 throughout."""
    assert set(found) == set(expected)
    for name, value in expected.items():
        assert value.max() > 0, name
        assert found[name].shape == value.shape
        assert (found[name] - value).abs().max() <= 1e-12 * value.max(), name


@pytest.mark.parametrize("estimator", ["exact", "sampled", "empirical"])
def test_agrees_with_per_sample_autograd_in_float64(estimator: Estimator) -> None:
    blocks, head = network()
    x = torch.randn(7, 3, 8, 8, dtype=torch.float64)
    labels = torch.randint(0, CLASSES, (7,))
    model = nn.Sequential(*blocks, head)
    if estimator == "sampled":  # the same draws, from the same generator
        labels = torch.multinomial(model(x).softmax(1), 1, generator=torch.Generator().manual_seed(3))[:, 0]
    expected = by_autograd(model, weights_of(blocks), x, estimator, labels)
    found, count = fisher_diagonal(blocks, head, [(x, labels)], estimator, torch.Generator().manual_seed(3))
    assert count == 7
    assert_same(found, expected)


@pytest.mark.parametrize("estimator", ["exact", "sampled", "empirical"])
def test_every_parameter_of_a_network_with_linear_layers_agrees_with_per_sample_autograd(estimator: Estimator) -> None:
    model = whole_network()
    x = torch.randn(7, 3, 8, 8, dtype=torch.float64)
    labels = torch.randint(0, CLASSES, (7,))
    if estimator == "sampled":
        labels = torch.multinomial(model(x).softmax(1), 1, generator=torch.Generator().manual_seed(3))[:, 0]
    expected = by_autograd(model, dict(model.named_parameters()), x, estimator, labels)
    found, count = fisher_of_network(model, [(x, labels)], estimator, torch.Generator().manual_seed(3))
    assert count == 7
    assert_same(found, expected)


def test_the_blocks_have_the_same_diagonal_whether_the_classifier_is_looked_at_or_passed_through() -> None:
    model = whole_network()
    x = torch.randn(5, 3, 8, 8, dtype=torch.float64)
    blocks, classifier = model
    assert isinstance(blocks, nn.Sequential)
    through, _ = fisher_diagonal(layers_of(blocks), classifier, [(x, None)], "exact", torch.Generator())
    whole, _ = fisher_of_network(model, [(x, None)], "exact", torch.Generator())
    assert_same({name: whole[name.replace("block.", "blocks.")] for name in through}, through)


@pytest.mark.parametrize("estimator", ["exact", "empirical"])
def test_blocks_in_the_middle_of_a_network(estimator: Estimator) -> None:
    """As Algorithm 1 needs it: the individual's own layers in front, its own layers and its classifier behind."""
    (first, middle, last), classifier = network()
    x, labels = torch.randn(5, 3, 8, 8, dtype=torch.float64), torch.randint(0, CLASSES, (5,))
    model = nn.Sequential(first, middle, last, classifier)
    expected = by_autograd(model, weights_of([middle]), x, estimator, labels)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    found, _ = fisher_diagonal(
        [middle], nn.Sequential(last, classifier), [(x, labels)], estimator, torch.Generator(), front=first
    )
    assert_same(found, expected)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(parameter.requires_grad and parameter.grad is None for parameter in model.parameters())


def test_sampled_and_exact_agree_in_expectation_and_empirical_does_not() -> None:
    """A z-test per tensor on the mean over many draws of the labels; the empirical diagonal must fail it."""
    model, draws, images = whole_network(), 400, 6
    x = torch.randn(images, 3, 8, 8, dtype=torch.float64)
    generator = torch.Generator().manual_seed(0)
    # The data's labels need not be what the model believes: here they are what it believes least.
    labels = model(x).argmin(1)

    def sums(estimator: Estimator) -> Tensor:
        found, _ = fisher_of_network(model, [(x, labels)], estimator, generator)
        return torch.stack([value.sum() for value in found.values()])

    drawn = torch.stack([sums("sampled") for _ in range(draws)])
    standard_error = drawn.std(0) / math.sqrt(draws)
    # 15 tensors: by chance one of them is beyond 4.5 standard errors in one of 10,000 such tests.
    assert ((drawn.mean(0) - sums("exact")) / standard_error).abs().max() < 4.5
    assert ((drawn.mean(0) - sums("empirical")) / standard_error).abs().max() > 20


class LiveBytes(TorchDispatchMode):
    """Counts the bytes of the tensors that torch's operations make and that are still alive.

    Attributes:
        peak: the most that ever lived at once.
    """

    now: int
    peak: int

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = 0
        self._seen: set[int] = set()

    def __torch_dispatch__(
        self,
        func: Callable[..., object],
        types: object,
        args: tuple[object, ...] = (),
        kwargs: Mapping[str, object] | None = None,
    ) -> object:
        result = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, Tensor):
                storage = leaf.untyped_storage()
                if id(storage) not in self._seen:
                    self._seen.add(id(storage))
                    self.now += storage.nbytes()
                    weakref.finalize(storage, self._gone, id(storage), storage.nbytes())
        self.peak = max(self.peak, self.now)
        return result

    def _gone(self, key: int, size: int) -> None:
        self._seen.discard(key)
        self.now -= size


def peak_bytes(run: Callable[[], object]) -> int:
    """The most bytes of tensors that live at once while ``run`` runs."""
    gc.collect()
    with LiveBytes() as live:
        run()
    return live.peak


def keeping_per_sample_gradients(model: nn.Module, x: Tensor, batches: int) -> dict[str, Tensor]:
    """What the Fisher diagonal must not be computed like: every image's gradient is kept until the end."""
    parameters, kept = list(model.parameters()), []
    for image in x.repeat(batches, 1, 1, 1):
        likely = model(image[None]).log_softmax(1)[0, 0]
        kept.append(torch.autograd.grad(likely, parameters))
    names = [name for name, _ in model.named_parameters()]
    return {n: torch.stack(g).square().mean(0) for n, g in zip(names, zip(*kept, strict=True), strict=True)}


def test_memory_does_not_grow_with_the_number_of_images() -> None:
    model, x = whole_network(), torch.randn(8, 3, 8, 8, dtype=torch.float64)

    def peak(batches: int, estimator: Estimator) -> int:
        return peak_bytes(partial(fisher_of_network, model, repeat((x, None), batches), estimator, torch.Generator()))

    for estimator in ("sampled", "exact"):
        assert peak(12, estimator) == peak(3, estimator)
    few, many = (peak_bytes(partial(keeping_per_sample_gradients, model, x, batches)) for batches in (3, 12))
    assert many > 3 * few


def test_the_gradients_of_a_batch_are_never_formed_one_by_one() -> None:
    model, x = whole_network(hidden=256), torch.randn(32, 3, 8, 8, dtype=torch.float64)
    every_gradient = len(x) * sum(parameter.nbytes for parameter in model.parameters())
    found = peak_bytes(partial(fisher_of_network, model, [(x, None)], "sampled", torch.Generator()))
    assert found < every_gradient / 4
    assert peak_bytes(partial(keeping_per_sample_gradients, model, x, 1)) > every_gradient


def test_the_sum_over_batches_is_the_average_over_images() -> None:
    model = whole_network()
    x = torch.randn(6, 3, 8, 8, dtype=torch.float64)
    generator = torch.Generator()
    whole, _ = fisher_of_network(model, [(x, None)], "exact", generator)
    parts, count = fisher_of_network(model, [(x[:2], None), (x[2:], None)], "exact", generator)
    assert count == 6
    assert_same(parts, whole)


@pytest.mark.parametrize(("height", "width"), [(2, 2), (4, 4), (1, 1), (3, 5)])
def test_both_forms_of_a_convolution_agree(height: int, width: int) -> None:
    inputs = torch.randn(5, 3, height, width, dtype=torch.float64)
    sensitivities = torch.randn(2, 5, 4, height, width, dtype=torch.float64)
    torch.testing.assert_close(
        convolution_by_pairs(inputs, sensitivities),
        convolution_by_unfolding(inputs, sensitivities, at_once=2),
        rtol=1e-12,
        atol=1e-12,
    )


def test_the_product_of_a_linear_layer_is_the_sum_of_squared_outer_products() -> None:
    inputs, sensitivities = torch.randn(5, 3, dtype=torch.float64), torch.randn(2, 5, 4, dtype=torch.float64)
    gradients = torch.einsum("lno,ni->lnoi", sensitivities, inputs)
    found = linear_squares(inputs, sensitivities.square().sum(0))
    torch.testing.assert_close(found, gradients.square().sum((0, 1)), rtol=1e-12, atol=0)


def test_the_form_is_chosen_by_the_count_of_multiplications() -> None:
    assert products_by_pairs(2, 2) == 26
    assert products_by_pairs(4, 4) == 628
    assert pairs_are_cheaper(2, 2, labels=1)
    assert not pairs_are_cheaper(4, 4, labels=1)
    assert pairs_are_cheaper(4, 4, labels=64)  # the sum over labels is taken before the product
    assert not pairs_are_cheaper(32, 32, labels=64)


def test_training_mode_is_refused() -> None:
    blocks, head = network()
    blocks[1].train()
    with pytest.raises(ValueError, match="evaluation mode"):
        fisher_diagonal(blocks, head, [(torch.randn(1, 3, 8, 8).double(), None)], "exact", torch.Generator())


def test_without_an_image_there_is_no_fisher() -> None:
    blocks, head = network()
    with pytest.raises(ValueError, match="at least one image"):
        fisher_diagonal(blocks, head, [], "sampled", torch.Generator())


def test_dropout_in_training_mode_is_refused() -> None:
    model = whole_network()
    model.get_submodule("classifier.3").train()
    with pytest.raises(ValueError, match="evaluation mode"):
        fisher_of_network(model, [(torch.randn(1, 3, 8, 8).double(), None)], "exact", torch.Generator())


def test_a_front_in_training_mode_is_refused() -> None:
    (first, *blocks), head = network()
    first.train()
    with pytest.raises(ValueError, match="evaluation mode"):
        fisher_diagonal(
            blocks, head, [(torch.randn(1, 3, 8, 8).double(), None)], "exact", torch.Generator(), front=first
        )


def test_the_empirical_one_needs_labels() -> None:
    blocks, head = network()
    with pytest.raises(ValueError, match="labels"):
        fisher_diagonal(blocks, head, [(torch.randn(1, 3, 8, 8).double(), None)], "empirical", torch.Generator())


@pytest.mark.parametrize(
    ("layer", "match"),
    [
        (nn.Conv2d(3, 2, 1, bias=False), "3x3"),
        (nn.Conv2d(3, 2, 3, padding=1), "without a bias"),
        (nn.Conv2d(3, 3, 3, padding=1, bias=False, groups=3), "groups=3"),
        (nn.LayerNorm([3, 8, 8]), "1.weight belongs to no"),
    ],
)
def test_a_layer_whose_diagonal_is_not_known_is_refused(layer: nn.Module, match: str) -> None:
    model = nn.Sequential(nn.Identity(), layer, nn.AdaptiveAvgPool2d(1), nn.Flatten()).eval()
    with pytest.raises(ValueError, match=match):
        fisher_of_network(model, [(torch.randn(1, 3, 8, 8), None)], "exact", torch.Generator())


def test_a_layer_that_is_used_twice_is_refused() -> None:
    linear = nn.Linear(3, 3)
    model = nn.Sequential(linear, nn.ReLU(), linear).eval()
    with pytest.raises(ValueError, match="used twice"):
        fisher_of_network(model, [(torch.randn(1, 3), None)], "exact", torch.Generator())
    assert model(torch.randn(2, 3)).shape == (2, 3)  # and nothing is left behind in the network
    assert not linear._forward_hooks
