"""What depends on the processor."""

import keras
import pytest
import tensorflow as tf

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


def saturated(x, kernel, transposed=False):
    """Multiply as processors without VNNI do: sums of pairs of products are limited to 16 bits."""
    kernel = tf.transpose(kernel) if transposed else tf.convert_to_tensor(kernel)
    x, kernel = (tf.cast(values, tf.int32) for values in (x, kernel))
    products = (x + 128)[:, :, None] * kernel[None]  # [T, in, out], of unsigned and signed integers
    pairs = tf.reduce_sum(tf.reshape(products, [x.shape[0], -1, 2, kernel.shape[1]]), 2)
    sums = tf.reduce_sum(tf.clip_by_value(pairs, -(2**15), 2**15 - 1), 1)
    return tf.cast(sums - 128 * tf.reduce_sum(kernel, 0), tf.float32)


def exact(x, kernel, transposed=False):
    return tf.matmul(tf.cast(x, tf.float32), tf.cast(kernel, tf.float32), transpose_b=transposed)


@pytest.mark.parametrize(("product", "has"), [(exact, True), (saturated, False), (None, False)])
def test_onednn_is_used_for_integers_only_if_it_is_exact(monkeypatch, product, has):
    small = tf.constant([[1, -2], [3, 4]], tf.int8)
    assert (
        saturated(small, small).numpy() == exact(small, small).numpy()
    ).all()  # which a test of few values would miss
    monkeypatch.setattr(choice, "cpu_features", lambda: frozenset({"avx2"}))
    monkeypatch.setattr(choice, "onednn_product", product)
    monkeypatch.setattr(choice, "has_onednn", choice.has_onednn.__wrapped__)
    assert choice.has_onednn() is has
    assert choice.uses_xla(4096, multiplies_integers=True) is not has and not choice.uses_xla(4096)
    assert choice.graph_product() == (choice.ONEDNN if has else choice.XLA)
    assert kernels()["int8, more tokens"].startswith("oneDNN" if has else "XLA")
