"""Times the Fisher diagonal of the last three convolutions beside one forward pass and beside other ways to get it."""

import copy
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap
from torch.utils.data import DataLoader, TensorDataset

from protocol.learngene.fisher import fisher_diagonal
from protocol.learngene.network import ConvolutionBlock
from protocol.node.events import Observer
from sims.bench.final_network import final_network
from sims.bench.memory import growth_elsewhere, print_growth
from sims.bench.rows import Clock, Comparison, Row, compare, seconds_of

#: Images, of which the memory is to be the same for the many as for the few.
FEW, MANY = 128, 1024
#: Of the last convolutions.
LAST = 3
_CLASSES, _AT_ONCE = 64, 64
_MEBIBYTE = 1 << 20
#: What torch warns of where a hook is at the first layer that has a gradient, as it is meant to be here.
_NO_INPUT_GRADIENT = "Full backward hook is firing"


class FisherWork:
    """The collective's final network in the paper's width, and images of noise with labels.

    Args:
        images: how many.
        width: factor on the paper's widths.
    """

    def __init__(self, images: int, width: float = 1.0) -> None:
        self._network = final_network(width, _CLASSES).eval()
        generator = torch.Generator().manual_seed(0)
        shape = (images, 3, 32, 32)
        self._x = torch.randn(shape, generator=generator).contiguous(memory_format=torch.channels_last)
        self._labels = torch.randint(_CLASSES, (images,), generator=generator)

    @torch.no_grad()
    def forward(self) -> None:
        """One forward pass of all images, in the precision of the Fisher information."""
        for x, _ in self._batches():
            self._network(x)

    def ours(self) -> list[Tensor]:
        """Sums over the images of the squared weight gradients of the last convolutions, for the given labels."""
        blocks = self._network.layers
        front, head = self._network.blocks[:-LAST], self._network.classifier
        generator = torch.Generator()
        diagonal, count = fisher_diagonal(blocks[-LAST:], head, self._batches(), "empirical", generator, front=front)
        return [diagonal[f"block.{number}.conv.weight"] * count for number in range(LAST)]

    def loop(self) -> list[Tensor]:
        """The same, image by image."""
        weights = [block.conv.weight for block in self._network.layers[-LAST:]]
        total = [torch.zeros_like(weight) for weight in weights]
        for x, label in zip(self._x.split(1), self._labels.split(1), strict=True):
            for sum_, gradient in zip(total, torch.autograd.grad(self._loss(x, label), weights), strict=True):
                sum_ += gradient.square()
        return total

    def vmapped(self) -> list[Tensor]:
        """The same by ``torch.func.vmap``, some images at a time: all of them at once do not fit."""
        named = {id(value): name for name, value in self._network.named_parameters()}
        weights = {named[id(b.conv.weight)]: b.conv.weight.detach() for b in self._network.layers[-LAST:]}

        def loss(values: Mapping[str, Tensor], x: Tensor, label: Tensor) -> Tensor:
            logits = functional_call(self._network, dict(values), (x[None],))
            return nn.functional.cross_entropy(logits, label[None])

        gradients = vmap(grad(loss), (None, 0, 0))
        total = [torch.zeros_like(weight) for weight in weights.values()]
        for x, label in zip(self._x.split(32), self._labels.split(32), strict=True):
            for sum_, gradient in zip(total, gradients(weights, x, label).values(), strict=True):
                sum_ += gradient.square().sum(0)
        return total

    def opacus(self) -> list[Tensor]:
        """The same from Opacus' gradients of each image."""
        from opacus.grad_sample import GradSampleModule

        plain, weights = self._plain()
        plain.to(memory_format=torch.contiguous_format)  # its convolutions take that for granted
        total = [torch.zeros_like(weight) for weight in weights]
        for module in plain:  # it looks at layers in training mode only, and means the same to a convolution
            module.train(isinstance(module, nn.Conv2d))
        model = GradSampleModule(plain, strict=False, loss_reduction="sum")
        warnings.filterwarnings("ignore", _NO_INPUT_GRADIENT)
        for x, labels in zip(self._x.contiguous().split(32), self._labels.split(32), strict=True):
            nn.functional.cross_entropy(model(x), labels, reduction="sum").backward()
            for sum_, weight in zip(total, weights, strict=True):
                sum_ += weight.grad_sample.square().sum(0)
                weight.grad_sample = weight.grad = None
        return total

    def backpack(self) -> list[Tensor]:
        """The same by BackPACK's ``SumGradSquared``."""
        from backpack import backpack, extend
        from backpack.extensions import SumGradSquared

        plain, weights = self._plain()
        model, criterion = extend(plain), extend(nn.CrossEntropyLoss(reduction="sum"))
        total = [torch.zeros_like(weight) for weight in weights]
        warnings.filterwarnings("ignore", _NO_INPUT_GRADIENT)
        for x, labels in self._batches():
            with backpack(SumGradSquared()):
                criterion(model(x), labels).backward()
            for sum_, weight in zip(total, weights, strict=True):
                sum_ += weight.sum_grad_squared
                weight.grad = None
        return total

    def nngeometry(self) -> list[Tensor]:
        """The same by nngeometry, as the matrix of a model with one output: the log-likelihood of the label."""
        from nngeometry.layercollection import LayerCollection
        from nngeometry.metrics import FIM
        from nngeometry.object import PMatDiag

        plain, weights = self._plain()
        layers = LayerCollection()
        for name, module in plain.named_modules():
            if any(value is weight for weight in weights for value in module.parameters(recurse=False)):
                layers.add_layer_from_model(plain, module)
                assert name

        def likelihood(x: Tensor, labels: Tensor) -> Tensor:
            log_probabilities: Tensor = plain(x).log_softmax(1)
            return log_probabilities.gather(1, labels[:, None])

        loader = DataLoader(TensorDataset(self._x, self._labels), batch_size=_AT_ONCE)
        found = FIM(plain, loader, PMatDiag, variant="regression", function=likelihood, layer_collection=layers)
        flat = found.get_diag() * len(self._x)
        parts = flat.split([weight.numel() for weight in weights])
        return [part.view_as(weight) for part, weight in zip(parts, weights, strict=True)]

    def _batches(self) -> Iterator[tuple[Tensor, Tensor]]:
        return zip(self._x.split(_AT_ONCE), self._labels.split(_AT_ONCE), strict=True)

    def _loss(self, x: Tensor, labels: Tensor) -> Tensor:
        return nn.functional.cross_entropy(self._network(x), labels)

    def _plain(self) -> tuple[nn.Sequential, list[Any]]:
        """A copy of the network as a chain of torch's own modules, as other packages want it (they leave hooks behind),
        of which only the weights of the last convolutions have a gradient. On these they put attributes."""
        network = copy.deepcopy(self._network)
        modules: list[nn.Module] = []
        for block in network.layers:
            modules += _modules(block)
        for module in network.classifier:
            modules += [module] if isinstance(module, nn.Linear | nn.ReLU | nn.Flatten) else []
        plain = nn.Sequential(*modules).requires_grad_(False).eval()
        return plain, [block.conv.weight.requires_grad_() for block in network.layers[-LAST:]]


def _modules(block: ConvolutionBlock) -> list[nn.Module]:
    return [block.conv, block.norm, nn.ReLU(), *([nn.MaxPool2d(2)] if block.pool else [])]


#: Other ways, by what they are called here, with the package that each needs.
OTHERS: dict[str, tuple[Callable[[FisherWork], list[Tensor]], str]] = {
    "a loop over the images": (FisherWork.loop, "torch"),
    "torch.func.vmap": (FisherWork.vmapped, "torch"),
    "Opacus": (FisherWork.opacus, "opacus"),
    "BackPACK": (FisherWork.backpack, "backpack"),
    "nngeometry": (FisherWork.nngeometry, "nngeometry"),
}


def measure(repeats: int, clock: Clock, observe: Observer, width: float = 1.0) -> list[Row]:
    """The rows of ``learngene bench fisher``.

    Args:
        repeats: of everything, each side in turn.
        observe: progress.
        width: factor on the paper's widths.
    """
    few, many = FisherWork(FEW, width), FisherWork(MANY, width)
    comparisons = [
        *(
            Comparison(
                f"Fisher of the last {LAST} convolutions, {count} images, beside one forward pass",
                partial(seconds_of, work.ours, clock),
                partial(seconds_of, work.forward, clock),
                "s",
                "at most 1.2",
            )
            for count, work in ((FEW, few), (MANY, many))
        ),
        *(
            Comparison(
                f"the same, {FEW} images, beside {name}",
                partial(seconds_of, few.ours, clock),
                partial(seconds_of, partial(other, few), clock),
                "s",
            )
            for name, (other, package) in OTHERS.items()
            if find_spec(package) is not None
        ),
        *(
            Comparison(
                f"memory of the same, {MANY} images, beside {name}",
                partial(_grown, f"{MANY} ours", width),
                partial(_grown, other, width),
                "MiB",
            )
            for other, name in ((f"{MANY} forward", "one forward pass"), (f"{FEW} ours", f"{FEW}"))
        ),
    ]
    for work in (few.ours, few.forward):
        work()
    return compare(comparisons, repeats, observe)


def _grown(what: str, width: float) -> float:
    return growth_elsewhere(__name__, *what.split(), str(width)) / _MEBIBYTE


def _main(images: int, what: str, width: float) -> None:
    work = FisherWork(images, width)
    print_growth({"ours": work.ours, "forward": work.forward}[what])


if __name__ == "__main__":
    _main(int(sys.argv[1]), sys.argv[2], float(sys.argv[3]))
