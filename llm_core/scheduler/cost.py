"""What steps cost, learnt from what they took.

Milliseconds are a non-negative linear function of a few features that the caller chooses, for example (1, decode
tokens, prefill tokens, query x context products): least squares with forgetting, one small model a key. It knows
nothing of what the features mean. Bytes are a maximum that decays slowly.

Errors are weighed relative to the prediction, so that a step of 1 ms teaches as much as one of 60 ms, and no feature
needs to be scaled. An observation that is far off counts only up to a few times the usual error: one slow step moves
little, and a lasting change opens that limit by itself, and shortens the memory, within tens of steps.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from operator import mul

_MEMORY = 0.995
"""What an observation still weighs after the next one: about 200 steps are remembered."""
_SHORTEST_MEMORY = 0.7
"""The same while predictions are poor, after a change: what was learnt before is then of little use."""
_HEAVY = 1e9
"""When the weight of new observations is brought back to 1."""
_SMALLEST_MS = 1e-3
_SMALLEST_ERROR = 0.02
"""The usual relative error is never believed to be less: timers and caches vary by this much."""
_SMALL_ERROR = 0.15
"""Observations within this of their prediction take one coordinate step; the others more."""
_POOR_ERROR = 0.3
"""A usual error above this is no noise: something changed."""
_TINY = 1e-200
_OUTLIER = 4.0
"""How many usual errors an observation counts at most."""
_ERROR_RATE = 0.1
"""How fast the usual error follows the latest one."""
_DECAY_OF_BYTES = 0.998


class CostModel:
    """Predicts milliseconds and bytes of a step by key, usually `workload/kind`.

    Args:
        priors: what to believe before the first observation: milliseconds per unit of each feature. A prior weighs as
            much as one observation. A key without one takes its first observation as it is.
        default_ms: the prediction for a key without prior or observation.
    """

    def __init__(self, priors: Mapping[str, Sequence[float]] | None = None, *, default_ms: float = 20.0) -> None:
        if default_ms <= 0:
            raise ValueError(f"{default_ms=} must be positive")
        self._default_ms = default_ms
        self._models = {key: _StepModel(weights) for key, weights in (priors or {}).items()}
        self._bytes: dict[str, float] = {}

    def predict(self, key: str, features: Sequence[float]) -> float:
        """Milliseconds, always positive."""
        model = self._models.get(key)
        return self._default_ms if model is None else model.predict(features)

    def observe(self, key: str, features: Sequence[float], ms: float) -> None:
        """Learn that a step with these features (non-negative, as many as ever under this key) took `ms`."""
        model = self._models.get(key)
        if model is None:
            model = self._models[key] = _StepModel([0.0] * len(features))
        model.observe(features, ms)

    def predict_bytes(self, key: str) -> int:
        """The largest peak seen under this key of late, 0 if none."""
        return int(self._bytes.get(key, 0.0))

    def observe_bytes(self, key: str, num_bytes: int) -> None:
        """Learn a measured peak. Forgets a larger one slowly: half of the difference in about 350 steps."""
        decayed = self._bytes.get(key, 0.0) * _DECAY_OF_BYTES
        self._bytes[key] = max(float(num_bytes), decayed + (1 - _DECAY_OF_BYTES) * num_bytes)

    def error(self, key: str) -> float:
        """The usual relative error of predictions under this key: 0.1 is 10 %. 1.0 where nothing is known."""
        model = self._models.get(key)
        return 1.0 if model is None else model.usual_error

    def errors(self) -> dict[str, float]:
        """`error` of every key, for metrics."""
        return {key: model.usual_error for key, model in self._models.items()}


class _StepModel:
    """Non-negative least squares over a fading memory, solved by a few coordinate steps an observation.

    It keeps the normal equations `normal @ weights = moments` of all observations, each divided by what was predicted
    for it. They are sums of squares and stay sound however long one kind of step is all that comes, which the inverse
    that recursive least squares keeps does not; and a coordinate step can hold its weight at 0.
    """

    def __init__(self, weights: Sequence[float]) -> None:
        if any(weight < 0 for weight in weights):
            raise ValueError(f"milliseconds per unit must not be negative: {list(weights)}")
        size = range(len(weights))
        self._weights = list(weights)
        self._normal = [[1 / weights[i] ** 2 if i == j and weights[i] else 0.0 for j in size] for i in size]
        self._moments = [1 / weight if weight else 0.0 for weight in weights]
        self._is_seen = [weight > 0 for weight in weights]
        self._weight = 1.0
        self._turn = 0
        self.usual_error = 1.0

    def predict(self, features: Sequence[float]) -> float:
        if len(features) != len(self._weights):
            raise ValueError(f"{len(features)} features where there were {len(self._weights)} before")
        predicted: float = sum(map(mul, self._weights, features))
        return max(predicted, _SMALLEST_MS)

    def observe(self, features: Sequence[float], ms: float) -> None:
        predicted = self.predict(features)
        if not all(self._is_seen):
            self._meet(features, ms - predicted)
            predicted = self.predict(features)
        error = ms / predicted - 1
        limit = _OUTLIER * self.usual_error
        error = min(max(error, -limit), limit)
        self._remember([feature / predicted for feature in features], 1 + error)
        self._solve(1 if abs(error) < _SMALL_ERROR else 2 * len(self._weights))
        self.usual_error += _ERROR_RATE * (max(abs(error), _SMALLEST_ERROR) - self.usual_error)

    def _meet(self, features: Sequence[float], surplus_ms: float) -> None:
        """Features that are seen for the first time explain, in equal parts, what the others do not."""
        new = [i for i, feature in enumerate(features) if feature > 0 and not self._is_seen[i]]
        for i in new:
            self._weights[i] = max(surplus_ms, 0.0) / (len(new) * features[i])
            self._is_seen[i] = True

    def _remember(self, x: Sequence[float], y: float) -> None:
        """Add an observation. Instead of fading all that is there, each new one weighs more than the one before."""
        self._weight /= _MEMORY if self.usual_error < _POOR_ERROR else max(1 - self.usual_error / 2, _SHORTEST_MEMORY)
        if self._weight > _HEAVY:
            self._normal = [[n / self._weight for n in row] for row in self._normal]
            self._moments = [moment / self._weight for moment in self._moments]
            self._weight = 1.0
        for i, xi in enumerate(x):
            if xi:
                weighted = self._weight * xi
                self._normal[i] = [n + weighted * xj for n, xj in zip(self._normal[i], x)]  # noqa: B905 (hot)
                self._moments[i] += weighted * y

    def _solve(self, num_steps: int) -> None:
        """Set one weight after the other to what fits best while the rest stay."""
        weights = self._weights
        for _ in range(num_steps):
            i = self._turn = (self._turn + 1) % len(weights)
            row = self._normal[i]
            if row[i] > _TINY:
                surplus: float = self._moments[i] - sum(map(mul, row, weights))
                weights[i] = max(0.0, weights[i] + surplus / row[i])
