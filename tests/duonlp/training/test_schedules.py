"""Learning rate schedules, and when a periodic action is due."""

import itertools
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from duonlp.errors import InputError
from duonlp.training.schedules import SCHEDULES, due, learning_rate_at

RUN = {"peak": 2e-3, "warmup_share": 0.1, "final_share": 0.05}


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_warmup_is_linear(schedule):
    rates = [learning_rate_at(p, schedule=schedule, **RUN) for p in (0, 0.025, 0.05, 0.1)]
    assert rates == pytest.approx([0, 0.5e-3, 1e-3, 2e-3])


@pytest.mark.parametrize(
    ("schedule", "middle", "end"),
    [
        ("cosine", 2e-3 * (0.05 + 0.95 * 0.5), 1e-4),
        ("linear", 2e-3 * (0.05 + 0.95 * 0.5), 1e-4),
        ("inverse_sqrt", 2e-3 * math.sqrt(0.1 / 0.55), 2e-3 * math.sqrt(0.1)),
        ("constant", 2e-3, 2e-3),
    ],
)
def test_known_points(schedule, middle, end):
    assert learning_rate_at(0.55, schedule=schedule, **RUN) == pytest.approx(middle)
    assert learning_rate_at(1.0, schedule=schedule, **RUN) == pytest.approx(end)
    assert learning_rate_at(7.0, schedule=schedule, **RUN) == pytest.approx(end)


def test_cosine_and_linear_differ_a_quarter_of_the_way_down():
    quarter = {"progress": 0.1 + 0.9 / 4, **RUN}
    assert learning_rate_at(**quarter) == pytest.approx(2e-3 * (0.05 + 0.95 * (1 + math.cos(math.pi / 4)) / 2))
    assert learning_rate_at(**quarter, schedule="linear") == pytest.approx(2e-3 * (0.05 + 0.95 * 0.75))


@given(
    schedule=st.sampled_from(SCHEDULES),
    warmup=st.floats(0.01, 0.9),
    final=st.floats(0, 1),
    points=st.lists(st.floats(0, 1), min_size=2, max_size=20),
)
def test_the_rate_rises_only_in_warmup_and_stays_in_bounds(schedule, warmup, final, points):
    run = {"schedule": schedule, "peak": 1.0, "warmup_share": warmup, "final_share": final}
    rates = [(p, learning_rate_at(p, **run)) for p in sorted(points)]
    for (p, rate), (q, following) in itertools.pairwise(rates):
        assert rate <= following + 1e-12 if q <= warmup else p < warmup or following <= rate + 1e-12
    assert all(isinstance(rate, float) and -1e-12 <= rate <= 1 + 1e-12 for _, rate in rates)
    assert all(rate >= final - 1e-12 for p, rate in rates if p >= warmup)


def test_without_warmup_the_rate_starts_at_the_peak():
    for schedule in ("cosine", "linear", "constant"):
        assert learning_rate_at(0, schedule=schedule, peak=1, warmup_share=0, final_share=0) == 1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"schedule": "cosin"}, "cosin.*cosine, linear"),
        ({"progress": -0.1}, "progress is -0.1"),
        ({"progress": math.nan}, "progress is nan"),
        ({"peak": 0.0}, "positive"),
        ({"peak": math.inf}, "positive"),
        ({"warmup_share": 1.0}, "warmup_share is 1.0"),
        ({"final_share": 1.1}, "final_share is 1.1"),
        ({"schedule": "inverse_sqrt", "warmup_share": 0.0}, "warmup_share above 0"),
    ],
)
def test_invalid_values(change, message):
    with pytest.raises(InputError, match=message):
        learning_rate_at(**({"progress": 0.5, **RUN} | change))


def test_due_at_intervals_and_at_the_last_step():
    assert [step for step in range(11) if due(step, 4, 10)] == [4, 8, 10]
    assert [step for step in range(11) if due(step, 4)] == [4, 8]
    assert not any(due(step, every, 10) for step in range(11) for every in (None, 0))
    assert all(due(step, 1) for step in range(1, 5)) and not due(0, 1, 0)
    with pytest.raises(InputError, match="the interval is -2 steps"):
        due(3, -2)
