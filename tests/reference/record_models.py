"""Record what Transformers' PyTorch models answer to tests/cases.py, for the tests that run without torch.

    python -m tests.reference.record_models

Writes tests/reference/models.npz: for each case every output (hidden states and attentions for the plain base model of each
family alone), and of the gradient of each parameter two random projections, which no wrong gradient would hit.
"""

import tempfile
import zlib
from pathlib import Path

import numpy as np

FILE = Path(__file__).with_name("models.npz")


def projections(path: str, gradient: np.ndarray) -> np.ndarray:
    """Two numbers that stand for a gradient: its products with random signs, over the root of its size."""
    rng = np.random.default_rng(zlib.crc32(path.encode()))
    signs = rng.integers(0, 2, (2, gradient.size)) * 2 - 1
    return (signs @ np.asarray(gradient, np.float64).ravel() / np.sqrt(gradient.size)).astype(np.float32)


def digest(case, outputs: dict, gradients: dict) -> dict[str, np.ndarray]:
    """What is recorded of a case."""
    plain = case.head == "base" and "[" not in case.name
    kept = {k: v.astype(np.float32) for k, v in outputs.items() if plain or "." not in k}
    if gradients:
        kept["gradients"] = np.stack([projections(path, gradients[path]) for path in sorted(gradients)])
    return kept


def main() -> None:
    """Record all cases."""
    from tests.cases import cases
    from tests.engines import run

    recorded = {}
    for case in cases():
        with tempfile.TemporaryDirectory() as folder:
            outputs, gradients = run("torch", case.write(Path(folder) / "model"), case.head, case.inputs())
        recorded |= {f"{case.name}/{k}": v for k, v in digest(case, outputs, gradients).items()}
        print(case.name)
    np.savez_compressed(FILE, **recorded)
    print(f"{FILE.name}: {FILE.stat().st_size / 1e6:.2f} MB")


if __name__ == "__main__":
    main()
