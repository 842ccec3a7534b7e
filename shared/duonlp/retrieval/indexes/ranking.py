"""Select the best documents, the same ones whatever computed their scores."""

import importlib
import importlib.util
import sys
import threading
from typing import Any

import numpy as np

from duonlp.errors import MissingExtraError

_IMPORTING = threading.Lock()


def best(scores: np.ndarray, k: int, above: float | None = None) -> np.ndarray:
    """Return the indices of the k highest scores, best first; equal ones in their order.

    Args:
        scores: float [n].
        k: Maximum number of indices.
        above: Leave out scores that are not above this one.
    """
    n = len(scores)
    if k >= n:
        chosen = np.arange(n) if above is None else np.flatnonzero(scores > above)
    else:
        limit = np.partition(scores, n - k)[n - k]
        if above is not None and above >= limit:
            chosen = np.flatnonzero(scores > above)
        else:
            higher, equal = np.flatnonzero(scores > limit), np.flatnonzero(scores == limit)
            chosen = np.concatenate([higher, equal[: k - len(higher)]])
    return chosen[np.lexsort((chosen, -scores[chosen]))]


def import_bm25s() -> Any:
    """Return the bm25s module, imported without JAX, whose devices it would initialize.

    Raises:
        MissingExtraError: It is not installed.
    """
    if "bm25s" not in sys.modules:
        if importlib.util.find_spec("bm25s") is None:
            raise MissingExtraError('keyword search needs bm25s, which is not installed; pip install "duonlp[qa]"')
        with _IMPORTING:
            # A module that is None in sys.modules cannot be imported.
            hidden = "jax.lax" if "jax" in sys.modules else "jax"
            before = sys.modules.get(hidden)
            sys.modules[hidden] = None  # type: ignore[assignment]
            try:
                importlib.import_module("bm25s")
            finally:
                del sys.modules[hidden]
                if before is not None:
                    sys.modules[hidden] = before
    return sys.modules["bm25s"]


def import_faiss(user: str = "FaissStore", extra: str = "qa") -> Any:
    """Return the faiss module.

    Args:
        user: Name of what needs it, for the error message.
        extra: Extra of duonlp that installs it.

    Raises:
        MissingExtraError: It is not installed.
    """
    if importlib.util.find_spec("faiss") is None:
        raise MissingExtraError(f'{user} needs faiss-cpu, which is not installed; pip install "duonlp[{extra}]"')
    return importlib.import_module("faiss")
