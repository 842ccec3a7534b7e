"""Test what is reported of quantized tensors."""

from dataclasses import asdict

import numpy as np
import pytest

from duonlp.errors import InputError
from duonlp.parameters import parameters
from duonlp.quantization import (
    QuantizationSettings,
    plot_histograms,
    quantized_values,
    storage_report,
    weight_histograms,
)
from duonlp.quantization.report import relative_error
from tests.duonlp.quantization.test_driver import BERT, HEAD, values_of

VALUES = values_of()
UP = "encoder/layer_0/feed_forward/up/kernel"


def quantized(scheme="int8", **settings):
    cfg, values = quantized_values(VALUES.__getitem__, BERT, HEAD, QuantizationSettings(scheme, **settings))
    return VALUES.__getitem__, (VALUES | values).__getitem__, cfg, HEAD


def test_storage_is_counted_for_every_tensor():
    report = storage_report(*quantized("int4", group_size=4, skip=["pooler/*"], embeddings=False))
    assert {row.path for row in report} == set(parameters(BERT, HEAD))
    assert [row.before for row in report] == sorted((row.before for row in report), reverse=True)
    rows = {row.path: row for row in report}
    up = rows[UP]  # 8 inputs, 12 outputs: two integers a byte, two groups of scales
    assert (up.shape, up.bits, up.group_size, up.before, up.after) == ((8, 12), 4, 4, 384, 8 * 12 // 2 + 2 * 12 * 4)
    assert up.error is not None and 0.01 < up.error < 0.2
    for path in ("pooler/dense/kernel", "embeddings/word_embeddings/embedding", "classifier/bias"):
        assert (rows[path].bits, rows[path].error, rows[path].after) == (32, None, rows[path].before)
    assert asdict(up)["group_size"] == 4
    words = {row.path: row for row in storage_report(*quantized())}["embeddings/word_embeddings/embedding"]
    assert words.after == 30 * 8 + 30 * 4 and words.error is not None and words.error < 0.01


def test_static_scales_count_and_errors_are_relative():
    cfg, values = quantized_values(
        VALUES.__getitem__, BERT, HEAD, QuantizationSettings("int8-static", layers=["classifier"], embeddings=False),
        lambda paths, observe, _: [observe(path, np.ones((2, 8), np.float32)) for path in paths],
    )  # fmt: skip
    report = storage_report(VALUES.__getitem__, (VALUES | values).__getitem__, cfg, HEAD)
    assert next(row.after for row in report if row.path == "classifier/kernel") == 8 * 2 + 2 * 4 + 4
    assert relative_error(np.array([3.0, 4.0]), np.array([3.0, 4.5])) == pytest.approx(0.1)
    assert relative_error(np.zeros(2), np.zeros(2)) == 0


@pytest.mark.parametrize(("scheme", "levels"), [("int8", 255), ("int4", 16)])
def test_histograms_count_every_value(scheme, levels):
    model = quantized(scheme)
    up, words = weight_histograms(*model, [UP, "embeddings/word_embeddings/embedding"], bins=20)
    for counts in (up.values, up.rounded, up.errors, up.integers):
        assert counts.sum() == 8 * 12
    assert len(up.integers) == levels and up.low == (-127 if scheme == "int8" else -8) and len(up.edges) == 21
    assert words.values.sum() == words.rounded.sum() == 30 * 8 and words.low == -127
    assert np.abs(up.error_edges).max() < np.abs(up.edges).max() * (0.01 if scheme == "int8" else 0.2)
    largest = weight_histograms(*model)
    assert largest[0].path == "embeddings/word_embeddings/embedding" and len(largest) == 3


def test_histograms_are_plotted(tmp_path):
    plot_histograms(weight_histograms(*quantized(), [UP], bins=20), tmp_path / "weights.svg")
    svg = (tmp_path / "weights.svg").read_text()
    assert UP in svg and "error of a weight" in svg


def test_tensors_that_are_not_quantized_have_no_histograms():
    with pytest.raises(InputError, match=r"'encoder/layer_0/feed_forward/up' is no quantized tensor.*up/kernel'"):
        weight_histograms(*quantized(), [UP.removesuffix("/kernel")])
