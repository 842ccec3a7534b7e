"""Every tensor that Transformers saves is accepted, also where its unused parameters differ from the used ones."""

import pytest

from duonlp import architectures
from duonlp.checkpoints import open_checkpoint
from tests.cases import cases

pytestmark = pytest.mark.parity


@pytest.mark.parametrize("case", cases(), ids=lambda case: case.name)
def test_a_model_with_random_parameters_is_loaded(case, tmp_path):
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    cls = getattr(transformers, architectures.class_of(case.config, case.head))
    hf = {
        key: value for key, value in case.hf.items() if (key, value) != ("summary_activation", None)
    }  # not valid there
    model = cls(transformers.AutoConfig.for_model(**hf))
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter += torch.rand_like(parameter)
    model.save_pretrained(tmp_path)
    checkpoint = open_checkpoint(tmp_path)
    assert all(source.tensor for source in checkpoint.plan(checkpoint.transformer_config(), case.head))
