"""pass@k: the chance that at least one of k samples solves a problem (Chen et al. 2021, arXiv:2107.03374)."""

import numpy as np

from duonlp.errors import InputError


def pass_at_k(n, c, k: int):
    """The unbiased estimate 1 - C(n - c, k) / C(n, k) from n samples of which c passed, as a product that cannot overflow.

    Args:
        n: samples of a problem: an integer, or an array of one for each problem.
        c: how many of them passed, from 0 to n, of n's shape or broadcast with it.
        k: samples drawn, from 1 to the least n.

    Returns:
        a float, or float64 of the arrays' shape; its mean over problems is a benchmark's pass@k.

    Raises:
        InputError: numbers that cannot be, such as k larger than n.
    """
    samples, passed = np.broadcast_arrays(np.asarray(n), np.asarray(c))
    if any(array.dtype.kind not in "iu" for array in (samples, passed)) or not isinstance(k, (int, np.integer)):
        raise InputError(f"n is {n!r}, c is {c!r} and k is {k!r}; all must be whole numbers")
    if samples.size and (passed.min() < 0 or (passed > samples).any()):
        raise InputError(f"c is {c!r}, of n, {n!r}; from 0 to all of the samples can have passed")
    if k < 1 or (samples.size and k > samples.min()):
        raise InputError(f"k is {k}, and n is {n!r}; k must be from 1 to the number of samples")
    # C(n - c, k) / C(n, k) = the product over i < k of (n - c - i) / (n - i), 0 from the first factor that is not positive.
    steps = np.arange(k)
    factors = np.maximum((samples - passed)[..., None] - steps, 0) / (samples[..., None] - steps)
    estimate = 1.0 - factors.prod(axis=-1)
    return float(estimate) if estimate.ndim == 0 else estimate
