"""The parameter tree against the weight tables, published sizes and initial values."""

import numpy as np
import pytest

from duonlp import architectures
from duonlp.architectures import config_from_hf
from duonlp.errors import ConfigError
from duonlp.parameters import Parameter, initial_value, parameters, sinusoidal_table
from tests.cases import cases


@pytest.mark.parametrize("case", cases(), ids=lambda case: case.name)
def test_the_weight_table_fills_exactly_the_tree(case):
    rows = [w for w in architectures.get(case.config.model_type).weights(case.config, case.head) if w.path]
    paths = [w.path for w in rows]
    assert len(set(paths)) == len(paths)
    assert set(paths) == set(parameters(case.config, case.head))


@pytest.mark.parametrize(
    ("hf", "head", "millions"),
    [
        ({"model_type": "bert"}, "base", 109.482240),
        ({"model_type": "gpt2"}, "causal-lm", 124.439808),
        ({"model_type": "distilbert"}, "base", 66.362880),
        ({"model_type": "roberta", "max_position_embeddings": 514, "type_vocab_size": 1}, "base", 124.645632),
    ],
)
def test_published_sizes(hf, head, millions):
    assert sum(p.size for p in parameters(config_from_hf(hf), head).values()) == round(millions * 1e6)


def test_initial_values_depend_on_seed_and_path_alone():
    p = Parameter((3, 4), "normal", 0.02)
    assert np.array_equal(initial_value("a", p, 1), initial_value("a", p, 1))
    assert not np.array_equal(initial_value("a", p, 1), initial_value("a", p, 2))
    assert not np.array_equal(initial_value("a", p, 1), initial_value("b", p, 1))
    assert initial_value("a", p).dtype == np.float32


def test_initial_values_have_the_requested_std():
    values = initial_value("a", Parameter((300, 300), "normal", 0.02))
    assert abs(values.std() - 0.02) < 2e-4 and abs(values.mean()) < 2e-4


def test_gpt2_starts_its_residual_outputs_smaller():
    tree = parameters(config_from_hf({"model_type": "gpt2"}), "base")
    assert tree["decoder/layer_0/attention/output/kernel"].std == pytest.approx(0.02 / np.sqrt(24))
    assert tree["decoder/layer_0/attention/query/kernel"].std == 0.02


def test_sinusoidal_table():
    table = sinusoidal_table(5, 4)
    assert np.allclose(table[:, 0], np.sin(np.arange(5))) and np.allclose(table[:, 1], np.cos(np.arange(5)))
    assert np.allclose(table[:, 2], np.sin(np.arange(5) / 100)) and np.allclose(table[:, 3], np.cos(np.arange(5) / 100))


def test_a_question_answering_head_has_two_outputs():
    with pytest.raises(ConfigError, match="3 labels"):
        parameters(config_from_hf({"model_type": "bert", "num_labels": 3}), "question-answering")
