"""Compute a shuffled order of any length without storing it: the block at each position of the training stream."""

import numpy as np

from duonlp.errors import InputError

ROUNDS = 8
SEED_LIMIT = 2**64


def check_seed(seed: int) -> int:
    """Return `seed` as an int; raise InputError unless it is an integer in [0, 2**64)."""
    if isinstance(seed, bool) or not isinstance(seed, (int, np.integer)) or not 0 <= seed < SEED_LIMIT:
        raise InputError(f"seed is {seed!r}; it must be an integer from 0 to 2**64 - 1")
    return int(seed)


def permuted(positions: np.ndarray, count: int, seed: int, epochs: np.ndarray | int = 0) -> np.ndarray:
    """Return the images of positions under a pseudorandom permutation of `range(count)`.

    A Feistel network (Luby and Rackoff 1988) permutes the integers of the bit length that `count`
    needs; results outside `range(count)` are permuted again until they fall inside (cycle walking:
    Black and Rogaway 2002, "Ciphers with Arbitrary Finite Domains"), which needs at most about two
    passes on average. Time and memory depend on the number of positions, not on `count`.

    Args:
        positions: Positions to permute, int [n], each in `range(count)`.
        count: Size of the permuted range.
        seed: Seed of the permutation, in [0, 2**64).
        epochs: Epoch of each position, int [n], or one for all. Each epoch has its own permutation.

    Returns:
        int64 [n], each in `range(count)`; distinct for distinct positions of the same epoch.

    Raises:
        InputError: If `count`, `seed` or a position is out of range.
    """
    positions = np.asarray(positions, dtype=np.int64)
    if count < 1:
        raise InputError(f"count is {count}; it must be at least 1")
    if positions.size and not (positions.min() >= 0 and positions.max() < count):
        raise InputError(f"positions are from {positions.min()} to {positions.max()}; they must be in range({count})")
    epochs = np.broadcast_to(np.asarray(epochs, dtype=np.uint64), positions.shape)
    bits = max(2, (count - 1).bit_length())
    keys = _mix(_mix(np.asarray([check_seed(seed)], dtype=np.uint64)) ^ epochs)  # [n]

    values = _feistel(positions.astype(np.uint64), keys, bits)
    outside = np.flatnonzero(values >= count)
    while outside.size:
        values[outside] = _feistel(values[outside], keys[outside], bits)
        outside = outside[values[outside] >= count]
    return values.astype(np.int64)


def random_choices(items: np.ndarray, counts: np.ndarray, seed: int, epoch: int) -> np.ndarray:
    """Return a pseudorandom number below each count, which depends on the item, the seed and the epoch.

    Args:
        items: Non-negative integers, int [n].
        counts: Number of choices of each item, int [n], at least 1.
        seed: Seed in [0, 2**64).
        epoch: Epoch, from 0 on.

    Returns:
        int64 [n].
    """
    key = _mix(_mix(np.asarray([check_seed(seed)], dtype=np.uint64)) ^ np.uint64(epoch))
    mixed = _mix(key, np.asarray(items).astype(np.uint64))
    return (mixed % np.asarray(counts).astype(np.uint64)).astype(np.int64)


def _feistel(values: np.ndarray, keys: np.ndarray, bits: int) -> np.ndarray:
    """Permute `bits`-bit integers, uint64 [n], each under its own key, uint64 [n].

    The two halves swap in every round; for odd `bits` their widths differ by one.
    """
    low_bits = np.uint64(bits // 2)
    high_bits = np.uint64(bits) - low_bits
    for index in range(ROUNDS):
        low = values & ((np.uint64(1) << low_bits) - np.uint64(1))
        high = values >> low_bits
        mixed = _mix(keys + np.uint64(index), low) & ((np.uint64(1) << high_bits) - np.uint64(1))
        # The low half becomes the high one, so the next round splits the `bits` bits at the other place.
        values = (low << high_bits) | (high ^ mixed)
        low_bits, high_bits = high_bits, low_bits
    return values


def _mix(values: np.ndarray, more: np.ndarray | None = None) -> np.ndarray:
    """Apply the finalizer of SplitMix64 (Steele, Lea and Flood 2014) to uint64 values, with wraparound."""
    if more is not None:
        values = _mix(values) + more
    values = values + np.uint64(0x9E3779B97F4A7C15)
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))
