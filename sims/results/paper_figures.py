"""The accuracies that the paper reports, by dataset."""

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class PaperFigures:
    """The paper's accuracies on one dataset in per cent, each with its +- figure.

    Attributes:
        novel: 5-way novel classes, mean of five tasks (Table 3): method -> shots -> accuracy.
        open_world: the collective's accuracy on open-world classes (Table 2).
    """

    novel: Mapping[str, Mapping[int, tuple[float, float]]]
    open_world: tuple[float, float]


#: The paper's figures by the dataset's name: figures of one dataset do not hold for another.
PAPER_FIGURES: Mapping[str, PaperFigures] = {
    "cifar100": PaperFigures(
        novel={
            "learngene (paper, λ = 1000)": {10: (58.86, 3.12), 20: (64.24, 1.89)},
            "DeepEMD (paper)": {10: (58.03, 1.85), 20: (63.69, 2.05)},
        },
        open_world=(45.88, 2.99),
    ),
    "imagenet100": PaperFigures(
        novel={
            "learngene (paper, λ = 1000)": {10: (52.96, 4.84), 20: (60.86, 4.48)},
            "DeepEMD (paper)": {10: (50.93, 2.78), 20: (59.69, 2.47)},
        },
        open_world=(42.40, 2.35),
    ),
}
