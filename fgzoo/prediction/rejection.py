"""Probabilities that mean what they say, and "I do not know": both are fitted to images that were held out of training.

A score says how well known what an image shows looks: the larger, the better known.

* `cosine`: the largest cosine of an image's features and a class's mean features, see [ClassMeans][];
* `probability`: the largest probability, max softmax(z / T), of the logits z with the temperature T (Hendrycks, Gimpel, arXiv
  1610.02136);
* `energy`: log sum exp(z) (Liu et al., arXiv 2010.03759).

`benchmarks/unknown.py` measures them, and the distance of Mahalanobis beside them.
"""

from __future__ import annotations

import base64
import itertools
import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal, get_args

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from fgzoo.errors import CheckpointError, UsageError

Score = Literal["cosine", "probability", "energy"]
#: What scores are, in words.
SCORES: dict[Score, str] = {
    "cosine": "cosine to the mean features of the nearest class", "probability": "largest probability",
    "energy": "log sum exp of logits",
}  # fmt: skip
#: Share of known images that is rejected unless one is asked for.
REJECTED = 0.05
#: Share of its own size by which a threshold lies below the score that it is taken from.
SLACK = 1e-4
#: The shares whose thresholds are stored.
RATES = (0.0, 0.005, *(percent / 100 for percent in range(1, 21)), 0.25, 0.3, 0.35, 0.4, 0.45, 0.5)
#: What an image is called that is not accepted.
UNKNOWN = "unknown"


@dataclass(frozen=True, eq=False)
class ClassMeans:
    r"""Where the classes lie in the space of features: the score of features f is $\max_k \cos(f, \mu_k)$.

    Means of features are those of Lee et al. (arXiv 1807.03888). The cosine in place of their Mahalanobis distance is our
    decision: it tells more unknown images apart (`benchmarks/results/unknown.md`) and needs no covariance.

    Attributes:
        directions: (K, D), the means $\mu_k$ with length one, rounded to half precision; zero for a class without an image.
    """

    directions: Tensor

    @classmethod
    def fit(cls, features: Tensor, targets: Tensor, num_classes: int) -> ClassMeans:
        """From features (N, D) of training images, and their classes (N,) of `num_classes`."""
        sums = features.new_zeros(num_classes, features.shape[1], dtype=torch.float64)
        return cls(F.normalize(sums.index_add_(0, targets, features.detach().double()), dim=1).half().float())

    @classmethod
    def read(cls, stored: Mapping[str, Any]) -> ClassMeans:
        """From what [as_dict][] gives; raises ValueError, KeyError or TypeError where it is something else."""
        values = np.frombuffer(base64.b64decode(stored["float16"], validate=True), "<f2").reshape(stored["shape"])
        if values.ndim != 2 or not np.isfinite(values).all():
            raise ValueError("class means")
        return cls(torch.from_numpy(values.astype(np.float32)))

    def as_dict(self) -> dict[str, Any]:
        """Plain values: the shape, and the numbers as text."""
        values = self.directions.numpy().astype("<f2")
        return {"shape": list(values.shape), "float16": base64.b64encode(values.tobytes()).decode()}

    def cosine(self, features: Tensor) -> Tensor:
        """The score, (B,), of features (B, D).

        Raises:
            CheckpointError: Their number is another one.
        """
        known, found = self.directions.shape[1], features.shape[1]
        if known != found:
            raise CheckpointError(f"checkpoint: it holds class means of {known} features, and the network has {found}")
        directions = self.directions.to(features.device)
        # In single precision, as the threshold was found, whatever the network computes in.
        with torch.autocast(features.device.type, enabled=False):
            return (F.normalize(features.float(), dim=1) @ F.normalize(directions, dim=1).T).amax(dim=1)


@dataclass(frozen=True)
class Calibration:
    """What held-out images taught about a network's answers.

    Attributes:
        temperature: T; softmax(logits / T) are the calibrated probabilities.
        score: What decides whether an image is accepted.
        rates: Shares of known images, rising from 0.
        thresholds: At least 1 - rate of the held-out images have this score or a larger one, by rate.
        images: How many images that were.
        means: What `cosine` needs beside features.
    """

    temperature: float
    score: Score
    rates: tuple[float, ...]
    thresholds: tuple[float, ...]
    images: int
    means: ClassMeans | None = field(default=None, compare=False, repr=False)

    @classmethod
    def fit(
        cls,
        logits: Tensor,
        targets: Tensor,
        score: Score = "probability",
        features: Tensor | None = None,
        means: ClassMeans | None = None,
    ) -> Calibration:
        """Fit temperature and thresholds to held-out images.

        Args:
            logits: (N, K) of images that were not trained on.
            targets: (N,) their classes.
            score: What decides.
            features: (N, D) of these images, and
            means: of the classes, which `cosine` needs.
        """
        found = cls(fit_temperature(logits, targets), score, RATES, (), len(logits), means)
        scores = found.scores(logits, features).double()
        thresholds = torch.quantile(scores, scores.new_tensor(RATES), interpolation="lower")
        # Which is an image's own score: in another batch, or an exported file, it may come out a little smaller.
        thresholds -= SLACK * thresholds.abs()
        return replace(found, thresholds=tuple(thresholds.tolist()))

    @classmethod
    def read(cls, stored: Mapping[str, Any], num_classes: int | None = None) -> Calibration:
        """From plain values, of a network with so many classes.

        Raises:
            CheckpointError: They are not what [as_dict][] gives.
        """
        try:
            rates, thresholds = (tuple(map(float, stored[name])) for name in ("rates", "thresholds"))
            means = None if stored.get("means") is None else ClassMeans.read(stored["means"])
            found = cls(float(stored["temperature"]), stored["score"], rates, thresholds, int(stored["images"]), means)
        except (KeyError, TypeError, ValueError) as error:
            raise CheckpointError(f"checkpoint: its calibration is not what fgzoo writes ({error!r})") from error
        numbers = (found.temperature, *rates, *thresholds)
        rising = all(one < other for one, other in itertools.pairwise(rates))
        whole = len(rates) == len(thresholds) > 0 and rising and found.temperature > 0 and all(map(math.isfinite, numbers))
        whole = whole and (found.score == "cosine") == (means is not None)
        whole = whole and (means is None or num_classes in (None, len(means.directions)))
        if not whole or found.score not in get_args(Score):
            raise CheckpointError("checkpoint: its calibration is not what fgzoo writes")
        return found

    def as_dict(self) -> dict[str, Any]:
        """Plain types only."""
        plain = {"temperature": self.temperature, "score": self.score, "rates": list(self.rates)}
        plain |= {"thresholds": list(self.thresholds), "images": self.images}
        return plain if self.means is None else {**plain, "means": self.means.as_dict()}

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

    def scores(self, logits: Tensor, features: Tensor | None = None) -> Tensor:
        """How well known images look, (B,), by their logits (B, K), or where it is `cosine` by their features (B, D)."""
        if self.score == "cosine":
            assert self.means is not None
            assert features is not None
            return self.means.cosine(features)
        return energy(logits) if self.score == "energy" else maximum_probability(logits, self.temperature)


def fit_temperature(logits: Tensor, targets: Tensor) -> float:
    r"""The temperature that gives held-out images the smallest negative log-likelihood.

    $$\frac{1}{N} \sum_n -\log \mathrm{softmax}(z_n / T)_{y_n} + \frac{2 (\log T)^2}{N}$$

    Source: Guo et al., arXiv 1706.04599. The second term, a normal prior of log T of standard deviation 1/2, is our decision: it
    keeps T near 1 where a dozen held-out images are right, which says little, and vanishes with their number.

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
        return float(likelihood) + 2 * log_temperature**2 / len(values)

    found = minimize_scalar(loss, bounds=(-math.log(20), math.log(20)), method="bounded", options={"xatol": 1e-5})
    return math.exp(found.x)


def maximum_probability(logits: Tensor, temperature: float = 1.0) -> Tensor:
    """The largest calibrated probability, (B,), of logits (B, K)."""
    return (logits / temperature).softmax(dim=1).amax(dim=1)


def energy(logits: Tensor) -> Tensor:
    """The negative energy, log sum exp of logits (B, K): (B,)."""
    return logits.logsumexp(dim=1)
