"""Compare float16 with Transformers' PyTorch models in float16: as accurate, and finite wherever they are."""

from importlib import import_module

import numpy as np
import pytest

from tests.cases import Case, cases
from tests.engines import difference
from tests.overflows import PLACES

pytestmark = pytest.mark.parity
PLAIN = [case for case in cases() if "[" not in case.name]
SEQ2SEQ = [case for case in cases() if case.head == "seq2seq-lm" and (case in PLAIN or case.name.startswith("t5"))]


@pytest.mark.parametrize(
    "case", [case for case in PLAIN if case.head in ("base", "seq2seq-lm")], ids=lambda case: case.name
)
def test_accuracy(case: Case, tmp_path):
    folder = case.write(tmp_path / "model", lambda path: 5.0 if "/feed_forward/" in path else 1.0)
    exact, theirs = (_torch(case, folder, dtype) for dtype in ("float32", "float16"))
    for framework in ("jaxnlp", "tfnlp"):
        ours = _outputs(framework, case, folder)
        for name, expected in exact.items():
            assert difference(ours[name], expected) < 3 * difference(theirs[name], expected) + 5e-3, (framework, name)


@pytest.mark.parametrize("place", list(PLACES))
@pytest.mark.parametrize("case", SEQ2SEQ, ids=lambda case: case.name)
def test_overflows(case: Case, place: str, tmp_path):
    folder = case.write(tmp_path / "model", PLACES[place])
    theirs = _torch(case, folder, "float16")
    clamps = case.config.norm.position == "pre" and place == "last encoder layer"
    if case.name == "t5-seq2seq-lm" or clamps:  # otherwise the test would hold without the guards
        assert np.isfinite(theirs["logits"]).all()
    for framework in ("jaxnlp", "tfnlp"):
        ours = _outputs(framework, case, folder)
        assert np.isfinite(ours["logits"]).all() or not np.isfinite(theirs["logits"]).all(), framework


def _torch(case: Case, folder, dtype: str) -> dict[str, np.ndarray]:
    import torch

    from tests.engines import torch_model

    model = type(torch_model(folder, case.head)).from_pretrained(folder, dtype=dtype, attn_implementation="eager")
    tensors = {name: torch.tensor(value) for name, value in case.inputs().items()}
    tensors = {
        name: value.to(model.dtype) if name == "pixel_values" else value if value.is_floating_point() else value.long()
        for name, value in tensors.items()
    }
    with torch.no_grad():
        outputs = model.eval()(**tensors)
    return {k: v.float().numpy() for k, v in outputs.items() if isinstance(v, torch.Tensor) and v.ndim}


def _outputs(framework: str, case: Case, folder) -> dict[str, np.ndarray]:
    package, heads = import_module(framework), import_module(f"{framework}.heads")
    model = heads.HEADS[case.head].from_pretrained(folder, dtype="float16")
    outputs = package.compiled(model)(**case.inputs())
    return {k: np.asarray(v, np.float32) for k, v in outputs.items()}
