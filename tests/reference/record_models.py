"""Record the outputs and gradients of Transformers' PyTorch models for tests/cases.py, for tests that run without torch.

    python -m tests.reference.record_models

Writes tests/reference/models.npz: every output of each case (hidden states and attentions only for the plain base model of each
family), and two random projections of each parameter's gradient, which a wrong gradient would not match.
"""

import tempfile
import zlib
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from tests.cases import Case

FILE = Path(__file__).with_name("models.npz")


def projections(path: str, gradient: np.ndarray) -> np.ndarray:
    """Return two random projections of a gradient, float32 [2]: products with random signs divided by the root of its size.

    Args:
        path: Path of the parameter, which seeds the signs.
        gradient: Gradient of any shape.
    """
    rng = np.random.default_rng(zlib.crc32(path.encode()))
    signs = rng.integers(0, 2, (2, gradient.size)) * 2 - 1
    return (signs @ np.asarray(gradient, np.float64).ravel() / np.sqrt(gradient.size)).astype(np.float32)


def digest(case: "Case", outputs: dict[str, np.ndarray], gradients: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Return the arrays to record of a case: outputs, and "gradients" float32 [parameters, 2] in the order of their paths."""
    plain = case.head == "base" and "[" not in case.name
    arrays = {k: v.astype(np.float32) for k, v in outputs.items() if plain or "." not in k}
    if gradients:
        arrays["gradients"] = np.stack([projections(path, gradients[path]) for path in sorted(gradients)])
    return arrays


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
