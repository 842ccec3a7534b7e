"""Record what Transformers' RAG models compute, for tests without torch: ``python -m tests.reference.record_rag``."""

from pathlib import Path

import numpy as np

from tests import rag

FILE = Path(__file__).parent / "rag.npz"


def projection(path: str, gradient: np.ndarray) -> np.ndarray:
    """Return what is recorded of a gradient, float64 [2]: its norm, and its product with fixed random numbers."""
    noise = np.random.default_rng(len(path)).standard_normal(gradient.shape)
    return np.array([np.linalg.norm(gradient), (gradient * noise).sum()])


if __name__ == "__main__":
    records = {}
    for name in rag.CLASSES:
        for key, value in rag.torch_answers(name).items():
            path = key.removeprefix("gradient/")
            records[f"{name}/{key}"] = value if path == key else projection(path, value)
    np.savez_compressed(FILE, **records)
