"""Probabilities that mean what they say, and "I do not know": both are fitted to images that were held out of training.

A score says how well known what an image shows looks: the larger, the better known. Two are made of a network's logits z:

* `probability`: the largest probability, max softmax(z / T), with the temperature T (Hendrycks, Gimpel, arXiv 1610.02136);
* `energy`: log sum exp(z) (Liu et al., arXiv 2010.03759).

Two are made of features, see [ClassMeans][]: they need the training images once more, and are measured by
`benchmarks/unknown.py` beside the others.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor

from fgzoo.errors import CheckpointError, UsageError

Score = Literal["probability", "energy"]
#: What is stored in checkpoints: a person can read its threshold. The first run of benchmarks/results/unknown.md speaks for
#: `energy`; one run of one method does not decide.
DEFAULT_SCORE: Score = "probability"
#: Share of known images that is rejected unless one is asked for.
REJECTED = 0.05
#: The shares whose thresholds are stored.
RATES = (0.0, 0.005, *(percent / 100 for percent in range(1, 21)), 0.25, 0.3, 0.35, 0.4, 0.45, 0.5)
#: What an image is called that is not accepted.
UNKNOWN = "unknown"


@dataclass(frozen=True)
class Calibration:
    """What held-out images taught about a network's answers.

    Attributes:
        temperature: T; softmax(logits / T) are the calibrated probabilities.
        score: What decides whether an image is accepted.
        rates: Shares of known images, rising from 0.
        thresholds: At least 1 - rate of the held-out images have this score or a larger one, by rate.
        images: How many images that were.
    """

    temperature: float
    score: Score
    rates: tuple[float, ...]
    thresholds: tuple[float, ...]
    images: int

    @classmethod
    def fit(cls, logits: Tensor, targets: Tensor, score: Score = DEFAULT_SCORE) -> Calibration:
        """Fit temperature and thresholds to held-out images.

        Args:
            logits: (N, K) of images that were not trained on.
            targets: (N,) their classes.
            score: What decides.
        """
        temperature = fit_temperature(logits, targets)
        found = cls(temperature, score, RATES, (), len(logits))
        scores = found.scores(logits.double())
        thresholds = torch.quantile(scores, scores.new_tensor(RATES), interpolation="lower")
        return replace(found, thresholds=tuple(thresholds.tolist()))

    @classmethod
    def read(cls, stored: Mapping[str, Any]) -> Calibration:
        """From plain values.

        Raises:
            CheckpointError: They are not what [as_dict][] gives.
        """
        try:
            rates, thresholds = (tuple(map(float, stored[name])) for name in ("rates", "thresholds"))
            found = cls(float(stored["temperature"]), stored["score"], rates, thresholds, int(stored["images"]))
        except (KeyError, TypeError, ValueError) as error:
            raise CheckpointError(f"checkpoint: its calibration is not what fgzoo writes ({error!r})") from error
        numbers = (found.temperature, *rates, *thresholds)
        rising = all(one < other for one, other in itertools.pairwise(rates))
        whole = len(rates) == len(thresholds) > 0 and rising and found.temperature > 0 and all(map(math.isfinite, numbers))
        if not whole or found.score not in get_args(Score):
            raise CheckpointError("checkpoint: its calibration is not what fgzoo writes")
        return found

    def as_dict(self) -> dict[str, Any]:
        """Plain types only."""
        return {**asdict(self), "rates": list(self.rates), "thresholds": list(self.thresholds)}

    def threshold(self, rate: float = REJECTED) -> float:
        """The score below which images are rejected, so that this share of known ones is; between stored rates on a line.

        Raises:
            UsageError: The rate is none that thresholds are known for.
        """
        if not self.rates[0] <= rate <= self.rates[-1]:
            raise UsageError(
                f"reject: {rate:g} is the share of known images to reject, {self.rates[0]:g} to {self.rates[-1]:g}"
                + (f"; to accept {rate:.0%} of them, give {1 - rate:g}" if self.rates[-1] < rate <= 1 else "")
            )
        above = next(place for place, known in enumerate(self.rates) if known >= rate)
        high = self.thresholds[above]
        if self.rates[above] == rate:
            return high
        low, start = self.thresholds[above - 1], self.rates[above - 1]
        return low + (high - low) * (rate - start) / (self.rates[above] - start)

    def scores(self, logits: Tensor) -> Tensor:
        """How well known images look, (B,), by their logits (B, K)."""
        return energy(logits) if self.score == "energy" else maximum_probability(logits, self.temperature)


def fit_temperature(logits: Tensor, targets: Tensor) -> float:
    r"""The temperature that gives held-out images the smallest negative log-likelihood.

    $$\frac{1}{N} \sum_n -\log \mathrm{softmax}(z_n / T)_{y_n} + \frac{(\log T)^2}{2N}$$

    Source: Guo et al., arXiv 1706.04599. The second term, a standard normal prior of log T, is our decision: it keeps T finite
    where every held-out image is right, and vanishes with their number.

    Args:
        logits: (N, K), finite.
        targets: (N,).

    Returns:
        T, from 0.05 to 20.
    """
    from scipy.optimize import minimize_scalar  # training alone needs it

    values = logits.double()

    def loss(log_temperature: float) -> float:
        likelihood = F.cross_entropy(values * math.exp(-log_temperature), targets)
        return float(likelihood) + log_temperature**2 / (2 * len(values))

    found = minimize_scalar(loss, bounds=(-math.log(20), math.log(20)), method="bounded", options={"xatol": 1e-5})
    return math.exp(found.x)


def maximum_probability(logits: Tensor, temperature: float = 1.0) -> Tensor:
    """The largest calibrated probability, (B,), of logits (B, K)."""
    return (logits / temperature).softmax(dim=1).amax(dim=1)


def energy(logits: Tensor) -> Tensor:
    """The negative energy, log sum exp of logits (B, K): (B,)."""
    return logits.logsumexp(dim=1)


@dataclass(frozen=True)
class ClassMeans:
    r"""Classes as points in the space of features, and one covariance S around all of them.

    S is that of the features less their class's mean, drawn towards a multiple of the unit matrix by as much as Ledoit and Wolf
    (2004) find best, so that it can be inverted where there are more features than images.

    Source: Lee et al., arXiv 1807.03888; the shrinkage is our decision.

    Attributes:
        means: (K, D), double precision.
        factor: (D, D), the lower Cholesky factor of S.
    """

    means: Tensor
    factor: Tensor

    @classmethod
    def fit(cls, features: Tensor, targets: Tensor) -> ClassMeans:
        """From the features (N, D) of training images and their classes (N,), each of which has an image."""
        values = features.double()
        counts = torch.bincount(targets).double()
        means = torch.zeros(len(counts), values.shape[1], dtype=values.dtype).index_add_(0, targets, values) / counts[:, None]
        return cls(means, torch.linalg.cholesky(shrunk_covariance(values - means[targets])))

    def mahalanobis(self, features: Tensor) -> Tensor:
        r"""The score $-\min_k (f - \mu_k)^\top S^{-1} (f - \mu_k)$, (B,), of features (B, D)."""
        white, centres = (
            torch.linalg.solve_triangular(self.factor, one.double().T, upper=False).T for one in (features, self.means)
        )
        return -torch.cdist(white, centres).amin(dim=1).square()

    def cosine(self, features: Tensor) -> Tensor:
        """The score max_k cos(f, mu_k), (B,), of features (B, D)."""
        return (F.normalize(features.double(), dim=1) @ F.normalize(self.means, dim=1).T).amax(dim=1)


def shrunk_covariance(centred: Tensor) -> Tensor:
    r"""Ledoit and Wolf's estimate of the covariance of N points (N, D) whose mean is 0: $(1 - a) S + a\, m I$.

    S is their covariance, m the mean of its diagonal; a, from 0 to 1, is the share at which the estimate's expected squared error
    is least (Journal of Multivariate Analysis 88, 2004).
    """
    count, size = centred.shape
    covariance = centred.T @ centred / count
    mean = covariance.diagonal().mean()
    spread = covariance.square().sum() - size * mean**2
    noise = (centred.square().sum(dim=1).square().sum() / count - covariance.square().sum()) / count
    share = (noise / spread).clamp(0, 1)
    return (1 - share) * covariance + share * mean * torch.eye(size, dtype=centred.dtype)
