"""Which frameworks there are, whether they are installed, and our package for each, imported when asked for."""

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
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType

from duonlp.errors import MissingExtraError
from duonlp.util.suggestions import choice

PACKAGES = {"tf": "tfnlp", "jax": "jaxnlp"}
"""Framework to our package."""

NEEDS = {"tf": "tensorflow", "jax": "flax", "torch": "torch"}
"""Framework to the module that must be installed; torch is a reference alone."""

INSTALL = {
    "tf": 'pip install "duonlp[tf]"',
    "jax": 'pip install "duonlp[jax]"',
    "torch": 'pip install "duonlp[parity]"',
}


def installed(framework: str) -> bool:
    """Whether a framework is installed; it is not imported for that."""
    return importlib.util.find_spec(NEEDS[framework]) is not None


def package(framework: str) -> ModuleType:
    """tfnlp or jaxnlp, imported.

    Raises:
        MissingExtraError: its framework is not installed.
    """
    require(framework)
    with without_native_notes():
        module = importlib.import_module(PACKAGES[framework])
        if framework == "tf":
            importlib.import_module("tensorflow").constant(0) + 0  # the first operation says its note, too
    return module


def require(framework: str) -> None:
    """Raises MissingExtraError, with what to install, unless the framework is installed."""
    if not installed(framework):
        name = PACKAGES.get(framework, framework)
        raise MissingExtraError(f"{name} needs {NEEDS[framework]}, which is not installed; {INSTALL[framework]}")


def transformers() -> ModuleType:
    """Import transformers without its note that there is no PyTorch: its tokenizers and configurations need none."""
    name = "TRANSFORMERS_NO_ADVISORY_WARNINGS"
    unset = name not in os.environ
    if unset:
        os.environ[name] = "1"
    try:
        return importlib.import_module("transformers")
    finally:
        if unset:
            del os.environ[name]


NATIVE_NOTE = re.compile(
    rb"^(I\d{4} |WARNING: All log messages before absl|E\d{4} .*failed call to cuInit: .*(\(303\)|NO_DEVICE))"
)
"""TensorFlow's informative lines, and its error of a machine without a CUDA driver or a device."""


@contextmanager
def without_native_notes() -> Iterator[None]:
    """Keep those lines of TensorFlow's C++ off standard error for which it has no switch; the rest comes after.

    A person who sets TF_CPP_MIN_LOG_LEVEL=0 sees them all. If the process ends here, its last lines are lost;
    faulthandler says on standard error where it was.
    """
    try:
        kept = None if os.environ.get("TF_CPP_MIN_LOG_LEVEL") == "0" else os.dup(2)
    except OSError:  # there is no standard error
        kept = None
    if kept is None:
        yield
        return
    watched = faulthandler.is_enabled()
    if not watched:
        faulthandler.enable(kept)
    with tempfile.TemporaryFile() as lines:
        os.dup2(lines.fileno(), 2)
        try:
            yield
        finally:
            os.dup2(kept, 2)
            if not watched:
                faulthandler.disable()
            os.close(kept)
            lines.seek(0)
            for line in lines:
                if not NATIVE_NOTE.match(line):
                    os.write(2, line)


def keep_heap() -> None:
    """Makes glibc's malloc keep the memory it has, for a loop on the CPU that allocates the same buffers each step.

    By default large buffers go back to the kernel and return as fresh pages: some 27,000 page faults a step of a small
    model's training, a fifth of its time. To be called before a framework starts its threads. Elsewhere it does nothing.
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
    """ "tf" or "jax": by default the one that is installed, jax if both are.

    Raises:
        InputError: another name.
    """
    if framework:
        return choice("framework", framework, PACKAGES)
    return "tf" if installed("tf") and not installed("jax") else "jax"


def load_package(framework: str, trains: bool = False):
    """The package for "tf" or "jax" (by default the one that is installed, jax if both are), and that name.

    Args:
        trains: prepares the process' memory for a training, which has to be done before TensorFlow starts its threads.

    Raises:
        InputError: another name.
        MissingExtraError: it is not installed.
    """
    framework = chosen_framework(framework)
    calm_frameworks()
    if trains:
        keep_heap()
    module = package(framework)
    # That a save took long, that a shape was compiled: notes to programmers. Of absl not even errors: those are raised as
    # well, and Orbax writes a traceback of a Ctrl-C that comes while it saves.
    for name, level in (("absl", logging.CRITICAL), ("tensorflow", logging.ERROR)):
        if name in sys.modules:
            logging.getLogger(name).setLevel(level)
    return module, framework


def calm_frameworks() -> None:
    """Before a framework is imported: no notes of its C++, no deprecations, on a person's screen."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    os.environ.setdefault("GRPC_VERBOSITY", "ERROR")
    os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")  # that there is no PyTorch
    warnings.filterwarnings("ignore", category=DeprecationWarning)
    warnings.filterwarnings("ignore", category=FutureWarning)
    # A warning of ours is a note to the person at the terminal, who has no use for a line of our source.
    warnings.formatwarning = lambda message, *_: f"duonlp: {message}\n"


def quiet_stdout():
    """While a framework works, whatever prints goes to standard error: standard output is for results."""
    return contextlib.redirect_stdout(sys.stderr)
