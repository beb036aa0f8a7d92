"""Seven scores of how unknown an image looks to the collective, and the threshold above which it is unknown."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from collective_node.settings import Score
from protocol.errors import InputError, RunFailedError

#: Added to both covariances' diagonals in ``relative-mahalanobis``, as a share of the mean variance of the features.
RIDGE = 1e-3
#: Power and number of probabilities of ``gen``, as its paper sets both.
GEN_POWER, GEN_LARGEST = 0.1, 100
#: Images scored at once by ``nearest-neighbour``: the matrix of distances has this many rows.
ROWS = 256


@dataclass(frozen=True)
class Responses:
    """Responses of a network to images, in evaluation mode; no value is NaN or infinite.

    Attributes:
        logits: ``[N, C]``, an output per known class, before any softmax.
        features: ``[N, F]``, what the classifier's last layer takes, after ReLU; of a cosine classifier, of length 1.

    Raises:
        ValueError: the shapes are not these, or no class is known.
        RunFailedError: a response is not finite.
    """

    logits: Tensor
    features: Tensor

    def __post_init__(self) -> None:
        logits, features = self.logits, self.features
        if logits.ndim != 2 or features.ndim != 2 or len(logits) != len(features) or logits.shape[1] == 0:
            raise ValueError(
                f"logits [N, C] of at least one class go with features [N, F], "
                f"not {list(logits.shape)} with {list(features.shape)}"
            )
        finite = torch.isfinite(logits).all(1) & torch.isfinite(features).all(1)
        if not finite.all():
            raise RunFailedError(
                f"the collective's network answers {int((~finite).sum())} of {len(finite)} images with numbers that "
                "are not finite; lower its learning rate"
            )

    def __len__(self) -> int:
        return len(self.logits)


def fit_score(
    score: Score, known: Responses, labels: Tensor, *, weights: Tensor, neighbours: int
) -> Callable[[Responses], Tensor]:
    """Fit the score with this name to known images, if it needs them.

    Args:
        score: which score.
        known: responses to training images of the known classes; only ``fdbd``, ``relative-mahalanobis`` and
            ``nearest-neighbour`` look at them.
        labels: their classes, ``[N]`` integers, in any numbering.
        weights: of the output layer, ``[C, F]``: a row for each logit; only ``fdbd`` looks at them.
        neighbours: k of ``nearest-neighbour``.

    Returns:
        Responses of any images to float64 ``[N]``; the larger, the more unknown.

    Raises:
        InputError: more neighbours than known images.
        RunFailedError: the features of all known images are the same.
        ValueError: there is no known image although the score needs some, or not one label per image, or not one weight
            for each pair of logit and feature.
    """
    match score:
        case "msp":
            return lambda responses: one_minus_largest_softmax(responses.logits)
        case "max-logit":
            return lambda responses: negated_largest_logit(responses.logits)
        case "energy":
            return lambda responses: free_energy(responses.logits)
        case "gen":
            return lambda responses: generalised_entropy(responses.logits)
        case "fdbd":
            return DecisionBoundaryDistance.fit(known, weights)
        case "relative-mahalanobis":
            relative = RelativeMahalanobis.fit(known.features, labels)
            return lambda responses: relative(responses.features)
        case "nearest-neighbour":
            nearest = NearestNeighbour.fit(known.features, neighbours)
            return lambda responses: nearest(responses.features)


def calibrated_threshold(known: Tensor, keep: float) -> float:
    """The smallest threshold (Eq. 3) that leaves at least a share ``keep`` of held-out known images known.

    An order statistic, not interpolated: one of the scores itself. An image is unknown when its score is *greater*
    (:func:`is_unknown`), so images that tie with the threshold stay known.

    Args:
        known: scores of known images that neither the network nor the score was fitted to, ``[N]``.
        keep: share, above 0 and at most 1.

    Raises:
        InputError: there is no known image.
        ValueError: a score is not a number, or ``keep`` is no such share.
    """
    if not 0 < keep <= 1:
        raise ValueError(f"the share of known images to keep is above 0 and at most 1, not {keep}")
    if len(known) == 0:
        raise InputError("no held-out image of a known class is there to calibrate on; add some, or set threshold")
    ordered = known.detach().cpu().double().sort().values
    if ordered.isnan().any():
        raise ValueError("a score of a held-out known image is not a number")
    # Shares are compared, not counts: 0.55 * 100 is more than 55 in floating point, but 55 / 100 is 0.55.
    shares = torch.arange(1, len(ordered) + 1, dtype=torch.float64) / len(ordered)
    return float(ordered[int((shares < keep).sum())])


def is_unknown(scores: Tensor, threshold: float) -> Tensor:
    """Eq. 3: bool ``[N]``, whether each score is greater than the threshold; compared in float64."""
    return scores.double() > threshold


def one_minus_largest_softmax(logits: Tensor) -> Tensor:
    """``1 - max_c softmax(logits)_c`` (Eq. 2): ``[N, C]`` to float64 ``[N]``, 0 to 1 - 1/C.

    Summed over the other classes, not subtracted from 1: images that the network is sure of do not all tie at 0.
    """
    probabilities = logits.double().softmax(1)
    return probabilities.scatter(1, logits.argmax(1, keepdim=True), 0.0).sum(1)


def negated_largest_logit(logits: Tensor) -> Tensor:
    """``-max_c logits_c`` (Hendrycks et al. 2022, arXiv 1911.11132): ``[N, C]`` to float64 ``[N]``."""
    return -logits.double().amax(1)


def free_energy(logits: Tensor) -> Tensor:
    """``-log sum_c exp(logits_c)`` at temperature 1 (Liu et al. 2020, arXiv 2010.03759): to float64 ``[N]``."""
    return -logits.double().logsumexp(1)


def generalised_entropy(logits: Tensor) -> Tensor:
    """``sum_m p_m^g (1 - p_m)^g`` over the M largest probabilities, ``g = 0.1``, ``M = 100`` (generalised entropy, GEN,
    Liu, Lochman and Zach 2023): ``[N, C]`` to float64 ``[N]``; over all of them if there are no more than M classes.

    The power lifts what is small, so it is taken of logarithms, and ``1 - p`` of the largest is summed over the others:
    images that the network is sure of do not tie.
    """
    logits = logits.double()
    largest = logits.log_softmax(1).topk(min(GEN_LARGEST, logits.shape[1]), dim=1).values
    rest = torch.cat([one_minus_largest_softmax(logits)[:, None], 1 - largest[:, 1:].exp()], 1)
    return ((GEN_POWER * largest).exp() * rest.pow(GEN_POWER)).sum(1)


@dataclass(frozen=True)
class DecisionBoundaryDistance:
    """Minus the mean distance to the decision boundaries, over the distance to the mean of the known features (fDBD,
    Liu and Qin 2024, arXiv 2312.11536), in float64.

    ``z`` lies ``|(w_f - w_c)^T z + b_f - b_c| / ||w_f - w_c||`` from the boundary between the class ``f`` that the
    network names and another one ``c``; the numerator is the difference of their logits. The mean is over all ``c``,
    and the divisor ``||z - mu||``: an image far from the known ones is far from every boundary as well.

    Attributes:
        mean: of the known images' features, ``[F]``.
        between: ``||w_f - w_c||``, ``[C, C]``.
    """

    mean: Tensor
    between: Tensor

    @classmethod
    def fit(cls, known: Responses, weights: Tensor) -> "DecisionBoundaryDistance":
        """From responses to known images, and the output layer's weights ``[C, F]``."""
        if len(known) == 0 or weights.shape != (known.logits.shape[1], known.features.shape[1]):
            raise ValueError(
                f"{list(weights.shape)} weights for {list(known.features.shape)} features of known images "
                f"and {known.logits.shape[1]} logits"
            )
        rows = weights.detach().double()
        between = torch.cdist(rows, rows, compute_mode="donot_use_mm_for_euclid_dist")
        return cls(known.features.double().mean(0), between)

    def __call__(self, responses: Responses) -> Tensor:
        """To float64 ``[N]``, at most 0; 0 for every image if one class is known and there is no boundary."""
        logits, smallest = responses.logits.double(), torch.finfo(torch.float64).tiny
        largest, named = logits.max(1, keepdim=True)
        # Of the named class itself 0 / tiny, which adds nothing.
        distances = (largest - logits) / self.between[named[:, 0]].clamp_min(smallest)
        mean = distances.sum(1) / max(1, logits.shape[1] - 1)
        apart: Tensor = torch.linalg.vector_norm(responses.features.double() - self.mean, dim=1)
        return -mean / apart.clamp_min(smallest)


@dataclass(frozen=True)
class RelativeMahalanobis:
    """``min_c (MD_c - MD_0)`` (Ren et al. 2021, arXiv 2106.09022), in float64.

    ``MD_c(z) = (z - mu_c)^T S^-1 (z - mu_c)`` with the mean of class ``c`` and the one covariance ``S`` of all features
    about their class means; ``MD_0`` likewise with the mean and covariance ``S_0`` of all features, whatever the class.
    Both covariances are divided by the number of images and get the *same* ridge on the diagonal, 1e-3 of the mean
    variance (``tr S_0 / F``). So the score does not depend on the features' scale, and a direction in which no known
    image varies, as of a unit that is always 0, adds exactly as much to ``MD_c`` as to ``MD_0``: nothing.

    Attributes:
        mean: of all features, ``[F]``.
        within, background: lower Cholesky factors of the two covariances, ``[F, F]``.
        centres: class means less the mean, divided by ``within``, ``[classes, F]``.
    """

    mean: Tensor
    within: Tensor
    background: Tensor
    centres: Tensor

    @classmethod
    def fit(cls, features: Tensor, labels: Tensor) -> "RelativeMahalanobis":
        """From features ``[N, F]`` of known images and their classes ``[N]``; a class may have one image."""
        if len(features) == 0 or labels.shape != features.shape[:1]:
            raise ValueError(f"{list(labels.shape)} labels for {list(features.shape)} features of known images")
        centred = features.double()
        mean = centred.mean(0)
        centred = centred - mean
        _, numbers, counts = labels.to(features.device).unique(return_inverse=True, return_counts=True)
        centres = centred.new_zeros((len(counts), centred.shape[1])).index_add_(0, numbers, centred) / counts[:, None]
        ridge = RIDGE * centred.square().mean()
        if ridge == 0:
            raise RunFailedError(
                "the collective's network gives all known images the same features; lower its learning rate"
            )
        background = _factor(centred, ridge)
        within = _factor(centred.sub_(centres[numbers]), ridge)
        return cls(mean, within, background, _divided(centres, within))

    def __call__(self, features: Tensor) -> Tensor:
        """``[N, F]`` to float64 ``[N]``."""
        centred = features.double() - self.mean
        to_class = torch.cdist(_divided(centred, self.within), self.centres).amin(1).square()
        return to_class - _divided(centred, self.background).square().sum(1)


def _factor(centred: Tensor, ridge: Tensor) -> Tensor:
    """Lower Cholesky factor of the covariance of ``[N, F]`` rows of mean 0, with a ridge."""
    covariance = centred.T @ centred / len(centred)
    covariance.diagonal().add_(ridge)
    factor: Tensor = torch.linalg.cholesky(covariance)
    return factor


def _divided(rows: Tensor, factor: Tensor) -> Tensor:
    """``[N, F]`` rows in the coordinates in which the factor's covariance is the identity."""
    solved: Tensor = torch.linalg.solve_triangular(factor, rows.T, upper=False)
    return solved.T


@dataclass(frozen=True)
class NearestNeighbour:
    """Distance to the k-th nearest known image, features scaled to length 1 (Sun et al. 2022, arXiv 2204.06507).

    From 0 to 2, or to the square root of 2 if no feature is negative. Meant for images that are not among the known
    ones, which are their own nearest neighbours. Features that are all 0 are not scaled: their distance to every other
    image is 1.

    Attributes:
        known: float64 ``[known images, F]``, of length 1.
        neighbours: k.
    """

    known: Tensor
    neighbours: int

    @classmethod
    def fit(cls, features: Tensor, neighbours: int) -> "NearestNeighbour":
        """From features ``[N, F]`` of known images."""
        if neighbours < 1:
            raise ValueError(f"the k-th nearest neighbour is counted from 1, not {neighbours}")
        if neighbours > len(features):
            raise InputError(
                f"the score nearest-neighbour cannot look {neighbours} images away among {len(features)} known images; "
                f"set neighbours to {len(features)} or less"
            )
        return cls(_unit(features), neighbours)

    def __call__(self, features: Tensor) -> Tensor:
        """``[N, F]`` to float64 ``[N]``; memory grows with the known images, not with the scored ones."""
        distances = (torch.cdist(rows, self.known) for rows in _unit(features).split(ROWS))
        return torch.cat([rows.topk(self.neighbours, largest=False).values.amax(1) for rows in distances])


def _unit(features: Tensor) -> Tensor:
    """Rows of length 1 in float64; a row of zeros stays one."""
    return torch.nn.functional.normalize(features.double(), eps=torch.finfo(torch.float64).tiny)
