"""The computed order is a permutation of any length, and well mixed."""

import tracemalloc

import numpy as np
import pytest

from duonlp.data.rows.order import permuted, random_choices
from duonlp.errors import InputError


@pytest.mark.parametrize("seed", [0, 2**64 - 1])
def test_a_permutation_of_every_length_up_to_200(seed):
    for count in range(1, 201):
        assert np.array_equal(np.sort(permuted(np.arange(count), count, seed)), np.arange(count)), count


@pytest.mark.parametrize("count", [2**16, 2**16 + 1, 99_991])
def test_a_permutation_of_a_long_range(count):
    assert np.array_equal(np.sort(permuted(np.arange(count), count, seed=3, epochs=2)), np.arange(count))


def test_memory_does_not_depend_on_the_count():
    count = 2**48 - 59
    tracemalloc.start()
    images = permuted(np.asarray([0, count - 1, count // 2]), count, seed=1)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 100_000 and len(set(images.tolist())) == 3 and (images < count).all()


def test_seeds_and_epochs_give_distinct_reproducible_orders():
    positions = np.arange(1000)
    orders = {(seed, epoch): permuted(positions, 1000, seed, epoch) for seed in range(3) for epoch in range(3)}
    keys = list(orders)
    for i, one in enumerate(keys):
        assert np.array_equal(orders[one], permuted(positions, 1000, *one))
        # Two random permutations agree in one position on average.
        assert all((orders[one] == orders[other]).sum() < 12 for other in keys[i + 1 :])


def test_each_position_may_have_its_own_epoch():
    positions, epochs = np.asarray([3, 3, 9, 0]), np.asarray([0, 1, 1, 7])
    singly = [permuted([p], 10, 5, e)[0] for p, e in zip(positions, epochs)]
    assert permuted(positions, 10, 5, epochs).tolist() == singly


def test_the_order_is_well_mixed():
    count = 20_000
    order = permuted(np.arange(count), count, seed=11)
    epochs = permuted(np.arange(count), count, seed=11, epochs=1)
    deviation = 1 / np.sqrt(count)
    for lag in (1, 2, 16, 128, 1024):
        assert abs(np.corrcoef(order[lag:], order[:-lag])[0, 1]) < 4 * deviation, lag
    assert abs(np.corrcoef(order, np.arange(count))[0, 1]) < 4 * deviation
    assert abs(np.corrcoef(order, epochs)[0, 1]) < 4 * deviation
    # Each tenth of the positions covers each tenth of the blocks evenly: chi-squared with 81 degrees of freedom.
    table = np.histogram2d(np.arange(count), order, bins=10)[0]
    assert ((table - count / 100) ** 2 / (count / 100)).sum() < 81 + 4 * np.sqrt(2 * 81)
    # Lowest bits of positions and blocks are uncorrelated.
    assert abs(np.corrcoef(order & 1, np.arange(count) & 1)[0, 1]) < 4 * deviation


def test_over_seeds_each_position_gets_each_block_equally_often():
    count, seeds = 7, 1500
    table = np.zeros((count, count))
    for seed in range(seeds):
        table[np.arange(count), permuted(np.arange(count), count, seed)] += 1
    expected = seeds / count
    assert ((table - expected) ** 2 / expected).sum() < 36 + 4 * np.sqrt(2 * 36)


@pytest.mark.parametrize(
    ("positions", "count", "seed", "message"),
    [
        ([0], 0, 0, "count is 0"),
        ([5], 5, 0, "range"),
        ([-1], 5, 0, "range"),
        ([0], 5, -1, "seed"),
        ([0], 5, 1.5, "seed"),
    ],
)
def test_values_out_of_range_are_an_error(positions, count, seed, message):
    with pytest.raises(InputError, match=message):
        permuted(positions, count, seed)


def test_choices_are_uniform_and_change_with_seed_and_epoch():
    items = np.arange(30_000)
    counts = items % 3 + 1
    chosen = random_choices(items, counts, seed=5, epoch=2)
    assert (chosen < counts).all() and np.array_equal(chosen[7:9], random_choices(items[7:9], counts[7:9], 5, 2))
    np.testing.assert_allclose(np.bincount(chosen[counts == 3]) / 10_000, 1 / 3, atol=0.02)
    for seed, epoch in ((6, 2), (5, 3)):
        same = chosen == random_choices(items, counts, seed, epoch)
        assert same[counts == 2].mean() == pytest.approx(1 / 2, abs=0.02)
