"""Which frameworks there are, whether they are installed, and our package for each, imported when asked for."""

import importlib
import importlib.util
from types import ModuleType

from shared.errors import MissingExtraError

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
    return importlib.import_module(PACKAGES[framework])


def require(framework: str) -> None:
    """Raises MissingExtraError, with what to install, unless the framework is installed."""
    if not installed(framework):
        name = PACKAGES.get(framework, framework)
        raise MissingExtraError(f"{name} needs {NEEDS[framework]}, which is not installed; {INSTALL[framework]}")
