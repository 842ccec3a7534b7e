"""The learning rate over a run, and when it is time to do something: plain Python floats, computed on the host."""

import math

from duonlp.errors import InputError

SCHEDULES = ("cosine", "linear", "inverse_sqrt", "constant")
"""What the learning rate does after its warm-up."""


def learning_rate_at(
    progress: float, *, schedule: str = "cosine", peak: float, warmup_share: float, final_share: float
) -> float:
    """The learning rate when a share of the run is done.

    It rises from 0 to `peak` in a straight line while `progress` is below `warmup_share`, and then

      - "cosine": falls along half a cosine to `final_share * peak` (Loshchilov & Hutter 2017, without restarts);
      - "linear": falls along a straight line to `final_share * peak`;
      - "inverse_sqrt": falls as 1 / sqrt(progress), `peak` being where the warm-up ends (Vaswani et al. 2017), though
        never below `final_share * peak`;
      - "constant": stays at `peak`, whatever `final_share`.

    Args:
        progress: share of the run that is done, 0 or more; above 1 it counts as 1.
        schedule: one of :data:`SCHEDULES`.
        peak: the largest learning rate.
        warmup_share: share of the run, from 0 to below 1; above 0 for "inverse_sqrt".
        final_share: the last learning rate as a share of the peak, from 0 to 1.

    Raises:
        InputError: a value that is not allowed.
    """
    if schedule not in SCHEDULES:
        raise InputError(f"schedule {schedule!r} is not known; choose one of {', '.join(SCHEDULES)}")
    if not progress >= 0:
        raise InputError(f"progress is {progress}; it must be the share of the run that is done, from 0 to 1")
    if not (math.isfinite(peak) and peak > 0):
        raise InputError(f"the peak of the learning rate is {peak}; it must be a positive number")
    if not 0 <= warmup_share < 1:
        raise InputError(f"warmup_share is {warmup_share}; it must be a share from 0 to below 1")
    if not 0 <= final_share <= 1:
        raise InputError(f"final_share is {final_share}; it must be a share from 0 to 1")
    if schedule == "inverse_sqrt" and warmup_share == 0:
        raise InputError("the schedule inverse_sqrt starts where its warm-up ends; give a warmup_share above 0")

    progress = min(progress, 1.0)
    if progress < warmup_share:
        return peak * progress / warmup_share
    if schedule == "constant":
        return peak
    if schedule == "inverse_sqrt":
        return peak * max(math.sqrt(warmup_share / progress), final_share)
    left = (1 - progress) / (1 - warmup_share)
    if schedule == "cosine":
        left = 0.5 * (1 - math.cos(math.pi * left))
    return peak * (final_share + (1 - final_share) * left)


def due(step: int, every: int | None, last: int | None = None) -> bool:
    """Whether it is time: the one answer for logs, evaluations and checkpoints (as in big_vision's `itstime`).

    Args:
        step: how many steps are done; nothing is due before the first.
        every: steps between two times; the last step counts as well. None or 0: never, not even then.
        last: the number of the last step; None while it is not known.

    Raises:
        InputError: `every` is negative.
    """
    if every is not None and every < 0:
        raise InputError(f"something is to be done every {every} steps; give a positive number, or 0 for never")
    if not every or step < 1:
        return False
    return step % every == 0 or step == last
