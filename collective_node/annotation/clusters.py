"""Unknown images in groups that look alike, the most confident groups first."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.stats import rankdata
from sklearn.cluster import AgglomerativeClustering

from collective_node.annotation.unknown_set import UnknownSet

#: Mean number of images in a group.
GROUP_SIZE = 16


@dataclass(frozen=True)
class Cluster:
    """A group of images: their numbers, those closest to the group's centre first, and its confidence, 0..1."""

    images: tuple[int, ...]
    confidence: float


def clusters(unknown: UnknownSet, *, group_size: int = GROUP_SIZE) -> list[Cluster]:
    """Group the images by Ward's method (Ward 1963) on their features, each scaled to length one.

    A group comes first if its images look unknown *and* look alike:

        confidence = mean rank of its scores, in (0, 1], times mean cosine over all pairs of its images

    Ranks are among all images of the set (equal scores share the mean of their ranks), so confidence means the same for
    every score. A group of one image, or of images at right angles, has confidence 0. The same set gives the same
    groups in the same order. Memory is about ``4 N ** 2`` bytes.

    Args:
        unknown: the images.
        group_size: images in a group, on average.
    """
    count = -(-len(unknown) // group_size)
    length = np.linalg.norm(unknown.features.astype(np.float64), axis=1, keepdims=True)
    directions = unknown.features / np.where(length > 0, length, 1)
    group = np.zeros(len(unknown), dtype=np.int64)
    if count > 1:
        group = AgglomerativeClustering(count, linkage="ward").fit_predict(directions)
    ranks = rankdata(unknown.scores) / len(unknown)
    found = [_cluster(np.flatnonzero(group == number), directions, ranks) for number in range(count)]
    return sorted(found, key=lambda cluster: (-cluster.confidence, cluster.images))


def _cluster(images: NDArray[np.int64], directions: NDArray[np.float64], ranks: NDArray[np.float64]) -> Cluster:
    members = directions[images]
    total = members.sum(axis=0)
    # sum over pairs i != j of <v_i, v_j> = |sum v|^2 - sum |v|^2
    pairs = len(images) * (len(images) - 1)
    cosine = float(total @ total - (members * members).sum()) / pairs if pairs else 0.0
    # Rounded, because sums in another order differ in the last digits, and the order must not.
    nearness = (members @ total).round(9)
    order = np.lexsort((images, -nearness))
    confidence = round(float(ranks[images].mean()) * min(max(cosine, 0.0), 1.0), 9)
    return Cluster(tuple(int(image) for image in images[order]), confidence)
