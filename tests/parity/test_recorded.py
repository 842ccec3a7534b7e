"""Compare every (family, head) in both engines with the recorded outputs and gradients of Transformers."""

import numpy as np
import pytest

from tests.cases import Case, cases
from tests.engines import difference, run
from tests.reference.record_models import FILE, digest

RECORDED = np.load(FILE) if FILE.exists() else {}


def marked_cases() -> list:
    """Return every case as a parameter; the first of each family, its plain base model, is marked representative."""
    first = {case.hf["model_type"]: case for case in reversed(cases())}
    marks = {case.name: pytest.mark.representative for case in first.values()}
    return [pytest.param(case, marks=marks.get(case.name, ())) for case in cases()]


@pytest.fixture(scope="module")
def recorded():
    """Return {case: {output: array}}."""
    arrays = {}
    for key in RECORDED:
        case, _, output = key.rpartition("/")
        arrays.setdefault(case, {})[output] = RECORDED[key]
    return arrays


@pytest.mark.parametrize("framework", ["jax", "tf"])
@pytest.mark.parametrize("case", marked_cases(), ids=lambda case: case.name)
def test_outputs_and_gradients(framework: str, case: Case, recorded, tmp_path):
    assert case.name in recorded, "the case is not recorded; run python -m tests.reference.record_models"
    ours = digest(case, *run(framework, case.write(tmp_path / "model"), case.head, case.inputs()))
    theirs = recorded[case.name]
    assert set(ours) == set(theirs)
    for name, expected in theirs.items():
        assert ours[name].shape == expected.shape, name
        assert difference(ours[name], expected) < (1e-4 if name == "gradients" else 1e-5), name


def test_recorded_cases_are_the_current_cases(recorded):
    assert set(recorded) == {case.name for case in cases()}
