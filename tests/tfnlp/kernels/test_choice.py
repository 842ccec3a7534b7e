"""What depends on the processor."""

import keras
import pytest

import tfnlp
from tfnlp.kernels import choice, kernels
from tfnlp.training.pretrainer import Pretrainer

GPT2 = {"model_type": "gpt2", "vocab_size": 32, "n_positions": 16, "n_embd": 8, "n_layer": 1, "n_head": 2}
PROCESSORS = {
    "AMX": ({"amx_bf16", "amx_int8", "avx512_bf16", "avx512_vnni"}, False),
    "AVX512-BF16": ({"avx512_bf16", "avx512_vnni"}, False),
    "VNNI": ({"avx512_vnni"}, True),
    "neither": (set(), True),
}


@pytest.mark.parametrize("processor", PROCESSORS)
def test_bfloat16_runs_with_xla_only_where_onednn_has_no_kernels(monkeypatch, processor):
    features, xla = PROCESSORS[processor]
    monkeypatch.setattr(choice, "cpu_features", lambda: frozenset(features))
    assert choice.trains_with_xla("float32") and choice.trains_with_xla("bfloat16") is xla
    assert choice.uses_xla(256) and not choice.uses_xla(257)
    assert choice.uses_xla(32, "bfloat16") and choice.uses_xla(33, "bfloat16") is xla
    described = kernels()
    assert described["training in bfloat16"].startswith("XLA" if xla else "TensorFlow's graph")
    assert ("slow" in described["training in bfloat16"]) is xla


def test_compile_chooses_by_the_processor_unless_told(monkeypatch):
    model = tfnlp.AutoModelForCausalLM.from_config(GPT2, dtype="bfloat16")
    trainer = Pretrainer(model)
    for features, xla in ((set(), True), ({"avx512_bf16"}, False)):
        monkeypatch.setattr(choice, "cpu_features", lambda features=features: frozenset(features))
        for options, expected in (({}, xla), ({"jit_compile": True}, True), ({"jit_compile": False}, False)):
            trainer.compile(keras.optimizers.SGD(0.1), **options)
            assert trainer.jit_compile is expected
    model.compile(keras.optimizers.SGD(0.1))
    assert model.jit_compile is False
    model.compile(keras.optimizers.SGD(0.1), jit_compile=True)
    assert model.jit_compile is True
