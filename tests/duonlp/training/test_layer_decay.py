"""Depth of each parameter, and the resulting learning rate factors."""

import pytest

from duonlp import architectures
from duonlp.parameters import parameters
from duonlp.training.fit_config import FitConfig
from duonlp.training.layer_decay import depth, rate_factor
from tests.pairs import T5

BERT = architectures.config_from_hf({"model_type": "bert", "num_hidden_layers": 3})


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("embeddings/word_embeddings/embedding", 0), ("embeddings/norm/scale", 0),
        ("encoder/layer_0/attention/query/kernel", 1), ("encoder/layer_2/feed_forward_norm/bias", 3),
        ("pooler/dense/kernel", 4), ("classifier/bias", 4), ("projection/kernel", 4),
    ],
)  # fmt: skip
def test_each_layer_is_one_deeper_than_the_previous(path, expected):
    assert depth(path, BERT) == (expected, 4)
    assert rate_factor(path, BERT, 0.5) == 0.5 ** (4 - expected)


def test_a_decoder_is_above_its_encoder():
    config = architectures.config_from_hf(T5 | {"num_layers": 2, "num_decoder_layers": 1})
    depths = {path: depth(path, config) for path in parameters(config, "seq2seq-lm")}
    assert {top for _, top in depths.values()} == {4}
    assert {depths[path][0] for path in depths if "relative_attention/" in path or "embeddings" in path} == {0}
    for prefix, expected in {
        "encoder/layer_1": 2,
        "encoder/final_norm": 2,
        "decoder/layer_0": 3,
        "decoder/final": 4,
    }.items():
        assert {d for path, (d, _) in depths.items() if path.startswith(prefix)} == {expected}


def test_every_family_has_every_depth():
    for hf, head in (
        ({"model_type": "albert", "num_hidden_layers": 4}, "sequence-classification"),  # shared layers
        ({"model_type": "gpt2", "n_layer": 2}, "causal-lm"), ({"model_type": "bart", "encoder_layers": 1}, "seq2seq-lm"),
    ):  # fmt: skip
        config = architectures.config_from_hf(hf)
        depths = [depth(path, config) for path in parameters(config, head)]
        top = depths[0][1]
        assert {value for value, _ in depths} | {top} == set(range(top + 1))


def test_the_decay_is_fixed_on_resume():
    assert "layer_decay" in FitConfig.fixed_on_resume and FitConfig().layer_decay == 1.0
