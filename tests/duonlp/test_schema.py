"""Kinds of values, and the bounds of every architecture's sizes."""

import itertools
import json

import numpy as np
import pytest

from duonlp import architectures
from duonlp.architectures._common import COMMON_SCHEMA
from duonlp.checkpoints import open_checkpoint
from duonlp.errors import CheckpointError, ConfigError
from duonlp.parameters import parameters
from duonlp.schema import (
    BOOL,
    LAYERS,
    RATE,
    WIDTH,
    check,
    choice,
    integer,
    list_of,
    mapping_of,
    number,
    shorten,
    table,
    text,
)
from tests import cases
from tests.attack.file_formats import write_checkpoint


@pytest.mark.parametrize(
    ("kind", "good", "bad"),
    [
        (integer(0, 9), [0, 9, np.int64(3)], [True, 1.0, "1", None, -1, 10, 10**400, float("nan")]),
        (number(0, 1), [0, 0.5, 1, np.float32(0.5)], [True, "0.5", -0.1, float("nan"), float("inf"), 10**400, None]),
        (number(0, 1, above=True), [0.1, 1], [0, 0.0]),
        (BOOL, [True, False], [0, 1, None, "true"]),
        (text(3), ["", "abc", "é"], ["abcd", "\ud800", b"a", None]),
        (choice("a", "b"), ["a"], ["c", ["a"], None]),
        (list_of(integer(0, 9), 1, 2), [[1], (1, 2)], [[], [1, 2, 3], [10], ["1"], 1, "12"]),
        (mapping_of(BOOL), [{}, {"a": True}], [{"a": 1}, {1: True}, [], None]),
        (table({"a": BOOL}), [{}, {"a": True, "b": 5}], [{"a": 5}, [], 1]),
        (RATE | list_of(RATE) | None, [None, 0.5, [0.5]], ["0.5", [2.0], {}]),
    ],
)
def test_kinds(kind, good, bad):
    assert [value for value in good if kind.fault(value)] == []
    assert [value for value in bad if not kind.fault(value)] == []


def test_a_fault_is_one_sentence_with_its_path():
    schema = {"sizes": table({"inner": list_of(WIDTH)}) | None, "layers": LAYERS}
    check("config.json", {"sizes": None, "layers": 3, "unknown": object()}, schema)
    with pytest.raises(
        ConfigError, match=r"^f: sizes\['inner'\]\[1\] is 'x'; it must be an integer from 1 to 1,048,576$"
    ):
        check("f", {"sizes": {"inner": [3, "x"]}}, schema)
    with pytest.raises(ConfigError, match=r"^f: layers is 1000000000; it must be an integer from 1 to 10,000$"):
        check("f", {"layers": 10**9}, schema)


def test_shortened_values_fit_on_a_line():
    deep = []
    for _ in range(10_000):
        deep = [deep]
    for value in ("x" * 10**6, [0] * 10**6, deep, 10**5000, {str(i): i for i in range(1000)}, "a\nb"):
        assert len(shorten(value)) <= 200 and "\n" not in shorten(value)


class Recorder(dict):
    """A config.json that records the keys that are read."""

    def __init__(self, values):
        super().__init__(values)
        self.keys_read = set()

    def __getitem__(self, key):
        self.keys_read.add(key)
        return super().__getitem__(key)

    def get(self, key, default=None):
        self.keys_read.add(key)
        return super().get(key, default)

    def pop(self, key, *default):
        self.keys_read.add(key)
        return super().pop(key, *default)


UNCHECKED = {
    "label2id", "quantization_config", "pruned_heads", "add_cross_attention", "position_embedding_type", "is_gated_act",
    "dense_act_fn",
}  # fmt: skip
"""Keys that are dropped, or compared with the only value that is supported."""


@pytest.mark.parametrize("model_type", architectures.families())
def test_a_family_declares_every_key_that_it_reads(model_type):
    family = architectures.get(model_type)
    values = Recorder({"model_type": model_type, **cases.SIZES.get(model_type, cases.ENCODER)})
    family.config(values)
    assert values.keys_read - set(COMMON_SCHEMA) - set(family.SCHEMA) - UNCHECKED == set()


@pytest.mark.parametrize("model_type", architectures.families())
def test_absurd_sizes_are_refused(model_type):
    sizes = {"model_type": model_type, **cases.SIZES.get(model_type, cases.ENCODER)}
    for key, value in sizes.items():
        if isinstance(value, int) and not key.endswith("token_id") and "every" not in key:
            for absurd in (10**10, -(10**10), float("nan"), str(value), None, [value] * 3, True):
                if value is not None and (
                    absurd is not None or key not in ("n_inner", "num_key_value_heads", "head_dim")
                ):
                    with pytest.raises(ConfigError, match=key):
                        architectures.config_from_hf(sizes | {key: absurd})
    with pytest.raises(ConfigError, match="num_labels is 1000000000; it must be"):
        architectures.config_from_hf(sizes | {"num_labels": 10**9})


@pytest.mark.parametrize(
    ("key", "value"), [("hidden_size", 2**20), ("num_hidden_layers", 10_000), ("vocab_size", 2**26)]
)
def test_the_header_is_compared_with_the_config_before_anything_is_allocated(tmp_path, key, value):
    folder = write_checkpoint(tmp_path / "model")
    file = folder / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {key: value}))
    checkpoint = open_checkpoint(folder)
    with pytest.raises(CheckpointError, match=r"config\.json does not match the weights"):
        checkpoint.plan(checkpoint.transformer_config(), checkpoint.head)


def test_a_config_error_names_the_file(tmp_path):
    folder = write_checkpoint(tmp_path / "model")
    (folder / "config.json").write_text('{"model_type": "bert", "hidden_size": 1e400}')
    with pytest.raises(ConfigError, match=r"model/config\.json: hidden_size is inf; it must be an integer"):
        open_checkpoint(folder).transformer_config()


@pytest.mark.parametrize("model_type", architectures.families())
def test_tables_of_weights_follow_the_smallest_sizes(model_type):
    """With any size 0 or any switch off, a weight table has no rows for parameters that the model lacks."""
    family, sizes = (
        architectures.get(model_type),
        {"model_type": model_type, **cases.SIZES.get(model_type, cases.ENCODER)},
    )
    for key, value in itertools.product({**family.SCHEMA, **sizes}, (0, False, None)):
        try:
            cfg = architectures.config_from_hf(sizes | {key: value})
            tables = {head: family.weights(cfg, head) for head in family.heads(model_type)}
        except ConfigError:
            continue
        for head, rows in tables.items():
            missing = {row.path for row in rows} - {None, *parameters(cfg, head)}
            assert not missing, f"{key}={value!r}: {head} has rows for {missing}"
