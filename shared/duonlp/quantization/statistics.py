"""What calibration records of the inputs of a layer, and the scales that follow from it."""

from collections.abc import Iterator

import numpy as np

from duonlp.errors import InputError
from duonlp.quantization.arithmetic import INT8_MAX

BINS = 2048
"""Bins of the histogram of magnitudes."""

SAMPLED_ROWS = 1024
"""Most rows kept for AWQ's search; at least half as many, if there are."""


class InputStatistics:
    """Statistics of the inputs [rows, n] of one layer, collected batch by batch; they do not depend on how rows are batched.

    Args:
        size: Number of inputs n.
        has_hessian: Whether to accumulate X^T X, for GPTQ.
        has_sample: Whether to keep rows, for AWQ: a sample of all, spread evenly.
        name: Path of the layer, for error messages.

    Attributes:
        rows: Number of rows seen.
        largest: Largest magnitude.
        magnitudes: Sum of |x| per channel, float64 [n].
        hessian: Sum of outer products x x^T, float64 [n, n]; None unless requested.
    """

    def __init__(self, size: int, has_hessian: bool = False, has_sample: bool = False, name: str = ""):
        self.rows, self.largest = 0, 0.0
        self.magnitudes = np.zeros(size)
        self.hessian = np.zeros((size, size)) if has_hessian else None
        self.has_sample, self.name = has_sample, name
        self._sample, self._keys, self._limit = np.zeros((0, size), np.float32), np.zeros(0, np.uint32), 2**32
        self._counts, self._width = np.zeros(BINS, np.int64), 0.0

    def add(self, x: np.ndarray) -> None:
        """Add rows float32 [m, n].

        Raises:
            InputError: A value is NaN or infinite.
        """
        if not len(x):
            return
        size = np.abs(x)
        if not np.isfinite(size).all():
            where = f" at the inputs of {self.name!r}" if self.name else ""
            raise InputError(
                f"calibration met NaN or infinite activations{where}; check the model's weights and the data"
            )
        self.rows += len(x)
        self.largest = max(self.largest, float(size.max()))
        self.magnitudes += size.sum(axis=0, dtype=np.float64)
        self._count(size)
        if self.hessian is not None:
            wide = x.astype(np.float64)
            self.hessian += wide.T @ wide
        if self.has_sample:
            self._keep(x)

    def _count(self, size: np.ndarray) -> None:
        """Add magnitudes to the histogram, whose width doubles (merging pairs of bins) until it covers them."""
        if self._width == 0:
            # A power of two, so that the bins do not depend on which rows come first.
            self._width = 2.0 ** np.ceil(np.log2(max(self.largest, 2.0**-60)))
        while self.largest > self._width:
            merged = self._counts.reshape(-1, 2).sum(axis=1)
            self._counts = np.concatenate([merged, np.zeros(BINS - len(merged), np.int64)])
            self._width *= 2
        bins = np.minimum((size.ravel() * (BINS / self._width)).astype(np.int64), BINS - 1)
        self._counts += np.bincount(bins, minlength=BINS)

    def _keep(self, x: np.ndarray) -> None:
        """Add rows to the sample: those whose number has a hash below a limit that is halved whenever there are too many.

        Multiples of the golden ratio spread evenly (Knuth, The Art of Computer Programming 3, 6.4), also over the positions of
        texts of one length, which every n-th row would not.
        """
        numbers = np.arange(self.rows - len(x), self.rows, dtype=np.uint64)
        keys = (numbers * np.uint64(2654435769)).astype(np.uint32)
        wanted = keys < self._limit
        self._sample, self._keys = np.concatenate([self._sample, x[wanted]]), np.concatenate([self._keys, keys[wanted]])
        while len(self._keys) > SAMPLED_ROWS:
            self._limit //= 2
            wanted = self._keys < self._limit
            self._sample, self._keys = self._sample[wanted], self._keys[wanted]

    @property
    def sample(self) -> np.ndarray:
        """Rows kept, float32 [m, n]."""
        return self._sample

    def input_scale(self, calibration: str, percentile: float) -> np.float32:
        """Return the scale of static activations.

        Args:
            calibration: "min-max" covers all magnitudes seen; "percentile" the given percentage of them; "mse" as many as
                minimize the squared error of clipping and rounding, over the histogram.
            percentile: Percentage for "percentile".
        """
        if self.largest == 0:
            return np.float32(1)
        bound = self.largest
        if calibration == "percentile":
            bound = self._quantile(percentile / 100)
        elif calibration == "mse":
            bound = min(self._bounds(), key=self._squared_error)
        return np.float32(bound / INT8_MAX)

    def _quantile(self, fraction: float) -> float:
        index = int(np.searchsorted(np.cumsum(self._counts), fraction * self._counts.sum()))
        return min((index + 1) * self._width / BINS, self.largest)

    def _bounds(self) -> Iterator[float]:
        for ratio in np.linspace(0.02, 1, 99):
            yield float(ratio * self.largest)

    def _squared_error(self, bound: float) -> float:
        """Return the summed squared error over the histogram's bin centers if values beyond ``bound`` are clipped."""
        centers = (np.arange(BINS) + 0.5) * (self._width / BINS)
        # Inside, the error is uniform over a step: its mean square is step^2 / 12, also where a bin is wider than a step.
        inside = (bound / INT8_MAX) ** 2 / 12
        errors = np.where(centers <= bound, inside, np.square(centers - bound))
        return float((errors * self._counts).sum())
