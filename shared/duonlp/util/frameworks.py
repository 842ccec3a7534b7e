"""Find the installed frameworks, import the engine of one on demand, keep its notes off the screen, and detect forks."""

import contextlib
import ctypes
import faulthandler
import importlib
import importlib.util
import logging
import os
import re
import sys
import tempfile
import warnings
from collections.abc import Generator
from contextlib import contextmanager
from types import ModuleType
from typing import TextIO, cast

from duonlp.errors import InputError, MissingExtraError
from duonlp.typing import Engine
from duonlp.util.suggestions import choice

PACKAGES = {"tf": "tfnlp", "jax": "jaxnlp"}
"""Framework to engine package."""

NEEDS = {"tf": "tensorflow", "jax": "flax", "torch": "torch"}
"""Framework to the module that must be installed. torch is only a reference."""

INSTALL = {
    "tf": 'pip install "duonlp[tf]"',
    "jax": 'pip install "duonlp[jax]"',
    "torch": 'pip install "duonlp[parity]"',
}
"""Framework to the command that installs it."""


def installed(framework: str) -> bool:
    """Return whether a framework is installed, without importing it."""
    return importlib.util.find_spec(NEEDS[framework]) is not None


def package(framework: str) -> Engine:
    """Import and return tfnlp or jaxnlp.

    Raises:
        MissingExtraError: The framework is not installed.
    """
    require(framework)
    with without_native_notes():
        module = importlib.import_module(PACKAGES[framework])
        if framework == "tf":
            importlib.import_module("tensorflow").constant(0) + 0  # the first operation prints notes, too
    return cast(Engine, module)


def require(framework: str) -> None:
    """Raise MissingExtraError, which says what to install, unless the framework is installed."""
    if not installed(framework):
        name = PACKAGES.get(framework, framework)
        raise MissingExtraError(f"{name} needs {NEEDS[framework]}, which is not installed; {INSTALL[framework]}")


def require_pillow() -> None:
    """Raise MissingExtraError unless Pillow is installed."""
    if importlib.util.find_spec("PIL") is None:
        raise MissingExtraError('reading images needs Pillow, which is not installed; pip install "duonlp[vision]"')


def transformers() -> ModuleType:
    """Import transformers without its message about missing PyTorch, which tokenizers and configurations do not need."""
    name = "TRANSFORMERS_NO_ADVISORY_WARNINGS"
    unset = name not in os.environ
    if unset:
        os.environ[name] = "1"
    try:
        return importlib.import_module("transformers")
    finally:
        if unset:
            os.environ.pop(name, None)  # another thread may have removed it


NATIVE_NOTE = re.compile(
    rb"^(I\d{4} |WARNING: All log messages before absl|E\d{4} .*failed call to cuInit: .*(\(303\)|NO_DEVICE))"
)
"""TensorFlow's informational lines, and its error on a machine without a CUDA driver or device."""


@contextmanager
def without_native_notes() -> Generator[None, None, None]:
    """Drop TensorFlow's informational C++ lines, which have no switch, from standard error; print other lines at the end.

    With TF_CPP_MIN_LOG_LEVEL=0 every line is shown. If the process dies meanwhile, its last lines are lost, but faulthandler
    still prints a traceback.
    """
    with contextlib.ExitStack() as stack:
        lines = stderr = None
        with contextlib.suppress(OSError):  # no standard error, or no folder for temporary files
            if os.environ.get("TF_CPP_MIN_LOG_LEVEL") != "0":
                lines = stack.enter_context(tempfile.TemporaryFile())
                stderr = os.dup(2)
        if lines is None or stderr is None:
            yield
            return
        was_enabled = faulthandler.is_enabled()
        if not was_enabled:
            faulthandler.enable(stderr)
        os.dup2(lines.fileno(), 2)
        try:
            yield
        finally:
            os.dup2(stderr, 2)
            if not was_enabled:
                faulthandler.disable()
            os.close(stderr)
            lines.seek(0)
            for line in lines:
                if not NATIVE_NOTE.match(line):
                    os.write(2, line)


def keep_heap() -> None:
    """Make glibc's malloc keep freed memory, for CPU loops that allocate the same buffers in each step.

    By default large buffers return to the kernel and come back as fresh pages: about 27,000 page faults per training step
    of a small model, a fifth of its time. Call this before a framework starts its threads. Does nothing without glibc.
    """
    if not sys.platform.startswith("linux"):
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        trim_threshold, top_pad, mmap_threshold, mmap_max, arena_max = -1, -2, -3, -4, -8  # malloc.h
        kept = {mmap_threshold: 1 << 25, trim_threshold: 1 << 30, top_pad: 1 << 28, mmap_max: 0, arena_max: 1}
        for option, value in kept.items():
            mallopt(option, value)


def chosen_framework(framework: str) -> str:
    """Return "tf" or "jax": the given name, or for "" the installed framework, jax if both are.

    Raises:
        InputError: The name is neither.
    """
    if framework:
        return choice("framework", framework, PACKAGES)
    return "tf" if installed("tf") and not installed("jax") else "jax"


def load_package(framework: str, trains: bool = False) -> tuple[Engine, str]:
    """Import the engine of a framework for a command, and return it with the framework's name.

    Args:
        framework: "tf" or "jax"; "" for the installed one, jax if both are.
        trains: Whether to call :func:`keep_heap`, which must happen before TensorFlow starts its threads.

    Raises:
        InputError: The name is neither.
        MissingExtraError: The framework is not installed.
    """
    framework = chosen_framework(framework)
    calm_frameworks()
    if trains:
        keep_heap()
    module = package(framework)
    # Notes about slow saves and compiled shapes are for developers. absl's errors are raised as exceptions anyway, and
    # Orbax would log a traceback for a Ctrl-C during a save.
    for name, level in (("absl", logging.CRITICAL), ("tensorflow", logging.ERROR)):
        if name in sys.modules:
            logging.getLogger(name).setLevel(level)
    return module, framework


def calm_frameworks() -> None:
    """Silence frameworks' C++ notes and deprecation warnings; call it before one is imported."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    os.environ.setdefault("GRPC_VERBOSITY", "ERROR")
    os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")  # "PyTorch was not found"
    warnings.filterwarnings("ignore", category=DeprecationWarning)
    warnings.filterwarnings("ignore", category=FutureWarning)
    # Our warnings are for the user at the terminal, who has no use for a source line.
    warnings.formatwarning = lambda message, category, filename, lineno, line=None: f"duonlp: {message}\n"


def quiet_stdout() -> contextlib.redirect_stdout[TextIO]:
    """Redirect standard output to standard error while a framework works: standard output is for results."""
    return contextlib.redirect_stdout(sys.stderr)


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
