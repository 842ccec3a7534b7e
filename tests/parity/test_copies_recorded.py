"""Compare models with tensors of their own, where config.json says they are tied or computed, with recorded logits."""

import numpy as np
import pytest

from tests.copies import OWN
from tests.engines import difference, run
from tests.reference.record_copies import FILE, NAMES

MODELS = {own.name: own for own in OWN}


@pytest.mark.filterwarnings("ignore:.*not tied, as Transformers does")
@pytest.mark.parametrize("framework", ["jax", "tf"])
@pytest.mark.parametrize("name", NAMES)
def test_logits(name, framework, tmp_path):
    own, positions = MODELS[name], "positions" in name
    folder = own.write(tmp_path / "model")
    outputs, gradients = run(framework, folder, own.case.head, own.case.inputs(), gradients=positions)
    assert difference(outputs["logits"], np.load(FILE)[name]) < 1e-5
    tables = [path for path in gradients if path.endswith("position_table")]
    assert len(tables) == 2 * positions and not any(gradients[path].any() for path in tables)
