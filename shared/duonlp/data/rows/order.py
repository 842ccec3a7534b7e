"""A shuffled order of any length that is computed, not stored: the block at each position of the training stream."""

import numpy as np

from duonlp.errors import InputError

ROUNDS = 8
MOST_SEED = 2**64


def check_seed(seed: int) -> int:
    """Returns `seed`, a whole number from 0 to 2**64 - 1, or raises an `InputError`."""
    if isinstance(seed, bool) or not isinstance(seed, (int, np.integer)) or not 0 <= seed < MOST_SEED:
        raise InputError(f"seed is {seed!r}; it must be a whole number from 0 to 2**64 - 1")
    return int(seed)


def permuted(positions: np.ndarray, count: int, seed: int, epochs: np.ndarray | int = 0) -> np.ndarray:
    """Returns where a pseudorandom permutation of `range(count)` sends each position.

    A Feistel network (Luby and Rackoff 1988) permutes the numbers of as many bits as `count` needs; what falls outside
    `range(count)` is sent through it again until it falls inside, which keeps it a permutation (cycle walking: Black
    and Rogaway 2002, "Ciphers with Arbitrary Finite Domains"). Fewer than half the numbers are outside, so that this
    takes two turns on average. Time and memory depend on the positions asked for alone, not on `count`.

    Args:
        positions: int [n], each in `range(count)`.
        count: how many there are to permute.
        seed: another seed is another permutation, as is another epoch.
        epochs: int [n] or one for all.

    Returns:
        int64 [n], each in `range(count)`; within an epoch, different for different positions.

    Raises:
        InputError: `count`, `seed` or a position is out of range.
    """
    positions = np.asarray(positions, dtype=np.int64)
    if count < 1:
        raise InputError(f"count is {count}; an order needs at least one thing to put in order")
    if positions.size and not (positions.min() >= 0 and positions.max() < count):
        raise InputError(f"positions go from {positions.min()} to {positions.max()}; they must be in range({count})")
    epochs = np.broadcast_to(np.asarray(epochs, dtype=np.uint64), positions.shape)
    bits = max(2, (count - 1).bit_length())
    keys = _mix(_mix(np.asarray([check_seed(seed)], dtype=np.uint64)) ^ epochs)  # [n]

    values = _feistel(positions.astype(np.uint64), keys, bits)
    outside = np.flatnonzero(values >= count)
    while outside.size:
        values[outside] = _feistel(values[outside], keys[outside], bits)
        outside = outside[values[outside] >= count]
    return values.astype(np.int64)


def _feistel(values: np.ndarray, keys: np.ndarray, bits: int) -> np.ndarray:
    """A permutation of the numbers of `bits` bits for each key. The halves may differ by a bit and change places."""
    low_bits = np.uint64(bits // 2)
    high_bits = np.uint64(bits) - low_bits
    for index in range(ROUNDS):
        low = values & ((np.uint64(1) << low_bits) - np.uint64(1))
        high = values >> low_bits
        mixed = _mix(keys + np.uint64(index), low) & ((np.uint64(1) << high_bits) - np.uint64(1))
        # The low half becomes the high one: what comes out again has `bits` bits, cut at another place.
        values = (low << high_bits) | (high ^ mixed)
        low_bits, high_bits = high_bits, low_bits
    return values


def _mix(values: np.ndarray, more: np.ndarray | None = None) -> np.ndarray:
    """The finaliser of SplitMix64 (Steele, Lea and Flood 2014), over uint64 that wrap around."""
    if more is not None:
        values = _mix(values) + more
    values = values + np.uint64(0x9E3779B97F4A7C15)
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))
