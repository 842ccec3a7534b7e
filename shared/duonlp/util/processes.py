"""Recognize processes forked from one that has used a framework, in which every computation would hang."""

import os

from duonlp.errors import InputError

_used = False
"""Whether this process has started to load or run a model."""

_forked = False
"""Whether this process was forked from one that had."""


def check_process() -> None:
    """Raise InputError in a process in which the frameworks cannot run; call it before a framework computes anything.

    The threads of TensorFlow and JAX do not survive a fork, so a child that computes waits for them forever.

    Raises:
        InputError: The process was forked from one that had loaded or run a model.
    """
    global _used
    if _forked:
        raise InputError(
            "this process was forked from one that had loaded a model, so models cannot be loaded or run in it: the threads of "
            "TensorFlow and JAX do not survive a fork; start processes with multiprocessing.get_context('spawn') and load the "
            "model in each, or fork before the first model is loaded"
        )
    _used = True


def _after_fork() -> None:
    global _forked
    _forked = _forked or _used


if hasattr(os, "register_at_fork"):  # not on Windows, which has no fork
    os.register_at_fork(after_in_child=_after_fork)
