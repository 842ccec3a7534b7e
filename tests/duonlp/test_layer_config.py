"""Layer patterns, and errors for layers that cannot be built."""

from dataclasses import replace

import pytest

from duonlp.architectures import config_from_hf, hf_config
from duonlp.config import (
    AttentionConfig,
    FeedForwardConfig,
    LayerConfig,
    LayerPattern,
    NormConfig,
    RotaryConfig,
    RotaryScaling,
)
from duonlp.distillation.students import student_config
from duonlp.errors import ConfigError, InputError
from duonlp.training.flops import token_flops

GLOBAL, LOCAL = "full_attention", "sliding_attention"
BLOCK = FeedForwardConfig(8)
LAYER = LayerConfig(AttentionConfig(2, 4), BLOCK)
A, B, C = (replace(LAYER, attention=AttentionConfig(2, 4, window=window)) for window in (None, 2, 3))
MODERNBERT = {"model_type": "modernbert", "hidden_size": 24, "num_attention_heads": 4}


@pytest.mark.parametrize(
    ("layers", "prefix", "period"),
    [
        ([A] * 4, 0, 1),
        ([A], 0, 1),
        ([A, B, B, C, B], 1, 3),
        ([C, B, B, A, B, B, A, B], 1, 3),  # ModernBERT: a special first layer, and a remainder
        ([B, B, A] * 2 + [B], 0, 3),
        ([A, B, C], 0, 3),
        ([B] * 5 + [A], 0, 6),
    ],
)
def test_the_shortest_pattern_describes_the_layers(layers, prefix, period):
    pattern = LayerPattern.of(layers)
    assert (len(pattern.prefix), len(pattern.period), len(pattern)) == (prefix, period, len(layers))
    assert list(pattern) == layers and pattern[-1] == layers[-1] and hash(pattern) == hash(LayerPattern.of(layers))
    with pytest.raises(IndexError):
        pattern[len(layers)]


def test_layers_that_share_weights():
    pattern = LayerPattern.uniform(A, 4, (0, 0, 1, 1))
    assert pattern.weights == (A, A) and pattern.shared
    assert pattern.select([1, 2]) == LayerPattern.uniform(A, 2)
    assert pattern.select([2, 3, 0]) == LayerPattern.uniform(A, 3, (0, 0, 1))
    assert LayerPattern.uniform(A, 2, (0, 1)) == LayerPattern.uniform(A, 2)  # an order that shares nothing is none


def test_kinds_of_attention_are_listed_once():
    rotary = RotaryConfig(4)
    rotating = replace(A, attention=replace(A.attention, rotary=rotary))
    pattern = LayerPattern.of([rotating, B, B, rotating])
    assert pattern.windows == (None, 2) and pattern.rotaries == (rotary,)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: LayerPattern((A, B), (B, B, C), 4), r"has 5 layers \(2 of the prefix and 3 .* more than the depth, 4"),
        (lambda: LayerPattern((), (A,), 0), "0 layers"),
        (lambda: LayerPattern.of([]), "at least one layer"),
        (lambda: LayerPattern.uniform(A, 3, (0, 2, 2)), "without gaps"),
        (lambda: LayerPattern.uniform(A, 3, (0, 0)), "one number for each of the 3 layers"),
        (lambda: LayerPattern((), (A, B), 2, (0, 0)), "must all be alike"),
        (lambda: AttentionConfig(4, 8, num_kv_heads=3), "4 attention heads cannot share 3 key-value heads"),
        (lambda: AttentionConfig(4, 8, num_kv_heads=0), "4 attention heads cannot share 0 key-value heads"),
        (lambda: AttentionConfig(0, 8), "0 heads"),
        (lambda: AttentionConfig(4, 8, window=0), "window is 0; use at least 1"),
        (lambda: AttentionConfig(4, 8, softcap=0.0), "softcap of attention scores is 0.0"),
        (lambda: AttentionConfig(4, 8, rotary=RotaryConfig(10)), "10 rotary dimensions do not fit into heads of width 8"),
        (lambda: RotaryConfig(5), "5 rotary dimensions cannot be rotated in pairs"),
        (lambda: RotaryConfig(4, base=0.0), "rotary base is 0.0"),
        (lambda: RotaryScaling("ntk"), "'ntk' is unknown; use one of linear, dynamic, yarn, llama3, longrope"),
        (lambda: NormConfig(position="sandwich"), "'sandwich' is unknown; use one of pre, post, both, none"),
        (lambda: NormConfig(unit_offset=True), "needs rms=True"),
        (lambda: replace(LAYER, parallel=True, cross_attention=LAYER.attention), "no cross-attention"),
        (lambda: config_from_hf({"model_type": "bert"}).replace(layers=LayerPattern.uniform(replace(A, parallel=True), 2)),
         "after the residual sums"),
        (lambda: config_from_hf(MODERNBERT | {"num_hidden_layers": 0}), "at least one layer"),
        (lambda: config_from_hf(MODERNBERT | {"hidden_size": 23}), "23 is not a multiple"),
        (lambda: config_from_hf(MODERNBERT | {"hidden_size": 20}), "5 rotary dimensions"),
        (lambda: config_from_hf(MODERNBERT | {"local_attention": -4}), "window is -1"),
        (lambda: config_from_hf(MODERNBERT | {"layer_types": [GLOBAL] * 3}), "for 22 layers"),
        (lambda: config_from_hf(MODERNBERT | {"global_attn_every_n_layers": 0}), "global_attn_every_n_layers=0"),
        (lambda: config_from_hf(MODERNBERT | {"rope_parameters": {GLOBAL: {"rope_type": "yarn"}}}), "rope_type 'yarn'"),
        (lambda: config_from_hf(MODERNBERT | {"rope_scaling": {"type": "linear"}}), "rope_scaling="),
        (lambda: config_from_hf(MODERNBERT | {"sparse_prediction": True}), "sparse_prediction=True"),
        (lambda: config_from_hf(MODERNBERT | {"classifier_pooling": "max"}), "classifier_pooling='max'"),
    ],
)  # fmt: skip
def test_layers_that_cannot_be_built(make, message):
    with pytest.raises(ConfigError, match=message):
        make()


def test_replace_and_without_dropout_change_every_layer():
    cfg = config_from_hf(MODERNBERT | {"attention_dropout": 0.1, "mlp_dropout": 0.2})
    assert {layer.attention.dropout for layer in cfg.replace(attention__dropout=0.5).layers} == {0.5}
    assert len(cfg.replace(attention__dropout=0.5).layers.windows) == 2
    clear = cfg.without_dropout()
    rates = {(c.dropout, c.output_dropout) for c in (layer.attention for layer in clear.layers)}
    assert rates == {(0.0, 0.0)} and {layer.feed_forward.dropout for layer in clear.layers} == {0.0}
    assert {layer.feed_forward for layer in cfg.replace(feed_forward=BLOCK).layers} == {BLOCK}


def test_old_and_new_keys_of_modernbert_mean_what_they_mean_in_transformers():
    from transformers import ModernBertConfig

    old = {"global_attn_every_n_layers": 2, "global_rope_theta": 50.0, "local_rope_theta": 5.0, "num_hidden_layers": 5}
    ours, theirs = hf_config(config_from_hf(MODERNBERT | old)), ModernBertConfig(**old)
    assert ours["layer_types"] == theirs.layer_types == [GLOBAL, LOCAL, GLOBAL, LOCAL, GLOBAL]
    assert ours["rope_parameters"] == theirs.rope_parameters
    cfg = config_from_hf(MODERNBERT | {"num_hidden_layers": 22})
    assert (len(cfg.layers.prefix), len(cfg.layers.period), len(cfg.layers)) == (1, 3, 22)
    assert [layer.attention_norm for layer in cfg.layers] == [False] + [True] * 21
    assert cfg.max_length == 8192


def test_students_of_layers_that_differ():
    cfg = config_from_hf(MODERNBERT | {"num_hidden_layers": 7})
    student = student_config(cfg, "masked-lm", layers=[0, 2, 3, 5])
    assert list(student.config.layers) == [cfg.layers[i] for i in (0, 2, 3, 5)]
    with pytest.raises(InputError, match="with the first layer among them"):
        student_config(cfg, "masked-lm", layers=[1, 3])


def test_flops_count_the_keys_in_a_window_and_shared_keys_and_values():
    cfg = config_from_hf(MODERNBERT | {"num_hidden_layers": 3, "local_attention": 4, "intermediate_size": 40})
    flops = token_flops(cfg, 16)
    assert flops.scores == flops.values == 2 * 24 * (16 + 2 * 5)
    assert flops.projections == 3 * 2 * 4 * 24 * 24 and flops.feed_forward == 3 * 2 * 3 * 24 * 40
    grouped = cfg.replace(attention__num_kv_heads=1)
    assert token_flops(grouped, 16).projections == 3 * 2 * 2 * 24 * (24 + 6)
