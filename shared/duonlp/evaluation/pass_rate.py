"""pass@k: the chance that at least one of k samples solves a problem (Chen et al. 2021, arXiv:2107.03374)."""

import numpy as np
from numpy.typing import ArrayLike

from duonlp.errors import InputError


def pass_at_k(n: ArrayLike, c: ArrayLike, k: int) -> float | np.ndarray:
    """Return the unbiased estimate 1 - C(n - c, k) / C(n, k), computed as a product that cannot overflow.

    Args:
        n: Number of samples of a problem: an integer, or an array with one per problem.
        c: Number of samples that passed, from 0 to n; broadcast with n.
        k: Number of samples to draw, from 1 to the smallest n.

    Returns:
        A float, or float64 of the arrays' shape; its mean over problems is the pass@k of a benchmark.

    Raises:
        InputError: A number is not an integer or is out of range, such as k larger than n.
    """
    samples, passed = np.broadcast_arrays(np.asarray(n), np.asarray(c))
    if any(array.dtype.kind not in "iu" for array in (samples, passed)) or not isinstance(k, (int, np.integer)):
        raise InputError(f"n is {n!r}, c is {c!r} and k is {k!r}; all must be integers")
    if samples.size and (passed.min() < 0 or (passed > samples).any()):
        raise InputError(f"c is {c!r}; it must be from 0 to n, which is {n!r}")
    if k < 1 or (samples.size and k > samples.min()):
        raise InputError(f"k is {k}; it must be from 1 to n, which is {n!r}")
    # C(n - c, k) / C(n, k) is the product over i < k of (n - c - i) / (n - i); it is 0 from the first non-positive factor.
    steps = np.arange(k)
    factors = np.maximum((samples - passed)[..., None] - steps, 0) / (samples[..., None] - steps)
    estimate = 1.0 - factors.prod(axis=-1)
    return float(estimate) if estimate.ndim == 0 else estimate
