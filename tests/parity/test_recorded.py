"""Every (family, head) in both frameworks against recorded answers of Transformers: forward and gradients."""

import numpy as np
import pytest

from tests.cases import Case, cases
from tests.engines import difference, run
from tests.reference.record_models import FILE, digest

RECORDED = np.load(FILE) if FILE.exists() else {}


def each_family_marked() -> list:
    """Every case; the first of each family, which is its plain base model, is representative."""
    first = {case.hf["model_type"]: case for case in reversed(cases())}
    marks = {case.name: pytest.mark.representative for case in first.values()}
    return [pytest.param(case, marks=marks.get(case.name, ())) for case in cases()]


@pytest.fixture(scope="module")
def recorded():
    names = {}
    for key in RECORDED:
        name, _, what = key.rpartition("/")
        names.setdefault(name, {})[what] = RECORDED[key]
    return names


@pytest.mark.parametrize("framework", ["jax", "tf"])
@pytest.mark.parametrize("case", each_family_marked(), ids=lambda case: case.name)
def test_outputs_and_gradients(framework: str, case: Case, recorded, tmp_path):
    assert case.name in recorded, "no recorded answer: run python -m tests.reference.record_models"
    ours = digest(case, *run(framework, case.write(tmp_path / "model"), case.head, case.inputs()))
    theirs = recorded[case.name]
    assert set(ours) == set(theirs)
    for name, expected in theirs.items():
        assert ours[name].shape == expected.shape, name
        assert difference(ours[name], expected) < (1e-4 if name == "gradients" else 1e-5), name


def test_every_recorded_answer_has_its_case(recorded):
    assert set(recorded) == {case.name for case in cases()}
