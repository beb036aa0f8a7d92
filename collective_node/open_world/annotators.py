"""Annotators, who name unknown images: an oracle in simulations, elsewhere a user of the annotation page."""

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from collective_node.annotation.labels import FEWEST_IMAGES, Labels, wait_for_labels
from collective_node.annotation.unknown_set import UnknownSet, cycle_folder, store
from collective_node.collective_images import Truth
from collective_node.records import Named


@dataclass(frozen=True)
class LabelQuery:
    """Query to an annotator in one cycle: which of these images show new classes?

    Attributes:
        cycle: its number, from 0.
        rows: rows ``[n]`` of this cycle's part of the stream.
        flagged: bool ``[n]``, which of them are in the unknown set.
        unknown: the unknown set: its images in the order of ``rows[flagged]``, scores, features, and the known names.
        at_most: M, the largest number of classes that an oracle names; at the page an annotator names any number.
    """

    cycle: int
    rows: NDArray[np.int64]
    flagged: NDArray[np.bool_]
    unknown: UnknownSet
    at_most: int


class Annotator(Protocol):
    """Names classes of interest in an unknown set and gives examples of them."""

    @property
    def truth(self) -> Truth | None:
        """The labels of the whole stream, for measuring; None if they are not known."""
        ...

    def name(self, query: LabelQuery) -> Named:
        """Name rows of the stream that show new classes, and no known class."""
        ...


@dataclass(frozen=True)
class Oracle:
    """An annotator that holds the labels of the stream, and names the classes with the most images in the unknown set.

    Attributes:
        truth: the labels.
        examples: further images of each named class, from the same part of the stream: it "provides their examples".
    """

    truth: Truth
    examples: int

    def name(self, query: LabelQuery) -> Named:
        """The images of the unknown set that show the chosen classes, then the further examples."""
        names = [self.truth.stream_names[row] for row in query.rows]
        known = set(query.unknown.known)
        seen = Counter(name for name, flag in zip(names, query.flagged, strict=True) if flag and name not in known)
        frequent = sorted((-count, name) for name, count in seen.items() if count >= FEWEST_IMAGES)
        chosen = {name for _, name in frequent[: query.at_most]}
        rows = [i for i, flag in enumerate(query.flagged) if flag and names[i] in chosen]
        given: Counter[str] = Counter()
        for i, flag in enumerate(query.flagged):
            if not flag and names[i] in chosen and given[names[i]] < self.examples:
                given[names[i]] += 1
                rows.append(i)
        return Named(rows=[int(query.rows[i]) for i in rows], names=[names[i] for i in rows])


@dataclass(frozen=True)
class PageAnnotator:
    """An annotator at ``collective-node annotate``: the unknown set is stored, and the evolution waits for the labels.

    Attributes:
        state: the node's state folder.
        wait: blocks until the labels of an unknown set's folder are finished.
    """

    state: Path
    wait: Callable[[Path], Labels] = wait_for_labels
    truth: None = None

    def name(self, query: LabelQuery) -> Named:
        """The images that were named; dismissed images and images of known classes are left out."""
        folder = cycle_folder(self.state, query.cycle + 1)
        store(folder, query.unknown)
        labels = self.wait(folder)
        labels.check_within(len(query.unknown))
        named = labels.new_classes(query.unknown.known)
        rows = query.rows[query.flagged]
        pairs = [(int(rows[image]), name) for name, images in named.items() for image in images]
        return Named(rows=[row for row, _ in pairs], names=[name for _, name in pairs])
