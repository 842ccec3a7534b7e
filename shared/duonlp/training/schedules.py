"""Learning rate schedules and periodic actions, computed on the host in plain Python floats."""

import math

from duonlp.errors import InputError

SCHEDULES = ("cosine", "linear", "inverse_sqrt", "constant")
"""Shapes of the learning rate after warmup."""


def learning_rate_at(
    progress: float, *, schedule: str = "cosine", peak: float, warmup_share: float, final_share: float
) -> float:
    """Return the learning rate when a share of the run is done.

    It rises linearly from 0 to `peak` while `progress` is below `warmup_share`, and then

      - "cosine": decays along half a cosine to `final_share * peak` (Loshchilov & Hutter 2017, without restarts);
      - "linear": decays linearly to `final_share * peak`;
      - "inverse_sqrt": decays as 1 / sqrt(progress) from `peak` at the end of warmup (Vaswani et al. 2017), but never below
        `final_share * peak`;
      - "constant": stays at `peak`, whatever `final_share`.

    Args:
        progress: Share of the run that is done, 0 or more; values above 1 count as 1.
        schedule: One of :data:`SCHEDULES`.
        peak: Largest learning rate.
        warmup_share: Share of the run spent on warmup, in [0, 1); above 0 for "inverse_sqrt".
        final_share: Final learning rate as a share of the peak, in [0, 1].

    Raises:
        InputError: An argument is out of range.
    """
    if schedule not in SCHEDULES:
        raise InputError(f"unknown schedule {schedule!r}; choose one of {', '.join(SCHEDULES)}")
    if not progress >= 0:
        raise InputError(f"progress is {progress}; it must be the share of the run that is done, 0 or more")
    if not (math.isfinite(peak) and peak > 0):
        raise InputError(f"the peak learning rate is {peak}; it must be a positive number")
    if not 0 <= warmup_share < 1:
        raise InputError(f"warmup_share is {warmup_share}; it must be in [0, 1)")
    if not 0 <= final_share <= 1:
        raise InputError(f"final_share is {final_share}; it must be in [0, 1]")
    if schedule == "inverse_sqrt" and warmup_share == 0:
        raise InputError("the inverse_sqrt schedule decays from the end of warmup; give a warmup_share above 0")

    progress = min(progress, 1.0)
    if progress < warmup_share:
        return peak * progress / warmup_share
    if schedule == "constant":
        return peak
    if schedule == "inverse_sqrt":
        return peak * max(math.sqrt(warmup_share / progress), final_share)
    remaining = (1 - progress) / (1 - warmup_share)
    if schedule == "cosine":
        remaining = 0.5 * (1 - math.cos(math.pi * remaining))
    return peak * (final_share + (1 - final_share) * remaining)


def due(step: int, every: int | None, last: int | None = None) -> bool:
    """Return whether a periodic action (logging, evaluation, checkpoint) is due, like big_vision's `itstime`.

    Args:
        step: Steps done. Nothing is due before the first.
        every: Interval in steps. The last step is always due, unless this is None or 0, which means never.
        last: Number of the last step; None if unknown.

    Raises:
        InputError: `every` is negative.
    """
    if every is not None and every < 0:
        raise InputError(f"the interval is {every} steps; give a positive number, or 0 for never")
    if not every or step < 1:
        return False
    return step % every == 0 or step == last
