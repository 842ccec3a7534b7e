"""Compare both engines with the recorded outputs of Transformers 4's TensorFlow and Flax models."""

import pytest

from duonlp.checkpoints import open_checkpoint
from tests.engines import difference, run
from tests.reference.record_legacy import unpack


@pytest.mark.parametrize("framework", ["jax", "tf"])
@pytest.mark.parametrize("name", ["tf-bert-masked-lm", "flax-gpt2-causal-lm", "tf-vit-image-classification"])
def test_outputs_are_those_of_transformers_4(framework, name, tmp_path):
    recorded = unpack(name, tmp_path / "model")
    inputs = {key.removeprefix("inputs/"): array for key, array in recorded.items() if key.startswith("inputs/")}
    head = open_checkpoint(tmp_path / "model").head
    outputs, _ = run(framework, tmp_path / "model", head, inputs, gradients=False)
    assert difference(outputs["logits"], recorded["outputs/logits"]) < 1e-5
