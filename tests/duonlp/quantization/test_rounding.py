"""Test GPTQ and AWQ, and the statistics that they and static scales follow from."""

import numpy as np
import pytest

from duonlp.config import LayerQuantization
from duonlp.errors import InputError
from duonlp.quantization import InputStatistics
from duonlp.quantization.arithmetic import dequantize_kernel, kernel_scales, limits, quantize_kernel
from duonlp.quantization.awq import awq
from duonlp.quantization.gptq import DAMPING, gptq, output_error
from duonlp.quantization.statistics import SAMPLED_ROWS

KINDS = [LayerQuantization(), LayerQuantization(bits=4), LayerQuantization(bits=4, group_size=50)]


def correlated(rows=600, size=150, seed=0):
    """Return inputs with a few directions, and some channels of far larger values, as those of transformers."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(rows, 20)) @ rng.normal(size=(20, size)) + 0.1 * rng.normal(size=(rows, size))
    x[:, :4] *= 15
    return x.astype(np.float32), rng.normal(size=(size, 30)).astype(np.float32)


def naive_gptq(kernel, quantization, hessian):
    """Round one input after the other, and update all later ones at once (the paper's algorithm without blocks)."""
    weights, size = kernel.astype(float), len(kernel)
    hessian = hessian + np.eye(size) * DAMPING * np.diag(hessian).mean()
    inverse = np.linalg.inv(hessian)
    scales, all_scales, out = None, [], np.zeros(kernel.shape)
    for i in range(size):
        if i % (quantization.group_size or size) == 0:
            group = weights[i : i + (quantization.group_size or size)]
            scales = kernel_scales(group.astype(np.float32), LayerQuantization(quantization.bits))
            all_scales.append(scales)
        out[i] = np.clip(np.rint(weights[i] / scales), *limits(quantization))
        error = (weights[i] - out[i] * scales) / inverse[i, i]
        weights[i:] -= np.outer(inverse[i:, i], error)
        inverse = inverse - np.outer(inverse[:, i], inverse[i]) / inverse[i, i]
    return out, np.stack(all_scales)


@pytest.mark.parametrize("quantization", KINDS, ids=str)
def test_gptq_is_the_algorithm_without_blocks_and_keeps_outputs_closer(quantization):
    x, kernel = correlated()
    hessian = (x.T @ x / len(x)).astype(float)
    integers, scales = gptq(kernel, quantization, hessian)
    expected, _ = naive_gptq(kernel, quantization, hessian)
    assert np.mean(integers == expected) > 0.999  # a value at the middle of two integers may be rounded to either
    nearest = dequantize_kernel(*quantize_kernel(kernel, quantization), quantization)
    rounded = dequantize_kernel(integers, scales, quantization)
    assert output_error(kernel, rounded, hessian) < 0.5 * output_error(kernel, nearest, hessian)


def test_gptq_ignores_inputs_that_are_always_zero():
    x, kernel = correlated(size=20)
    x[:, 3] = 0
    integers, scales = gptq(kernel, LayerQuantization(), (x.T @ x).astype(float))
    assert not integers[3].any() and np.isfinite(scales).all()


@pytest.mark.parametrize("quantization", KINDS, ids=str)
def test_awq_keeps_outputs_closer_than_rounding_to_the_nearest(quantization):
    x, kernel = correlated()
    seen = InputStatistics(len(kernel), has_sample=True)
    seen.add(x)
    integers, scales, factors = awq(kernel, quantization, seen)
    rounded = dequantize_kernel(integers, scales, quantization) / factors[:, None]
    nearest = dequantize_kernel(*quantize_kernel(kernel, quantization), quantization)
    hessian = (x.T @ x).astype(float)
    assert output_error(kernel, rounded, hessian) < output_error(kernel, nearest, hessian)
    assert factors[:4].min() > factors[4:].max()


def test_scales_that_fit_the_inputs_lower_the_error_of_the_outputs():
    x, kernel = correlated()
    for quantization in KINDS[1:]:
        hessian = (x.T @ x).astype(float)
        plain, fitted = (
            dequantize_kernel(*quantize_kernel(kernel, quantization, scales), quantization)
            for scales in (kernel_scales(kernel, quantization), kernel_scales(kernel, quantization, inputs=x))
        )
        assert output_error(kernel, fitted, hessian) < output_error(kernel, plain, hessian)


def test_the_sample_is_bounded_and_spread_over_all_rows_and_positions():
    whole, parts = (InputStatistics(2, has_sample=True) for _ in range(2))
    numbers = np.arange(30_000)
    x = np.stack([numbers, numbers % 128], axis=1).astype(np.float32)  # texts of 128 tokens
    whole.add(x)
    for part in np.array_split(x, [3, 1000, 1001, 17_000]):
        parts.add(part)
    np.testing.assert_array_equal(whole.sample, parts.sample)
    assert SAMPLED_ROWS // 2 <= len(whole.sample) <= SAMPLED_ROWS
    assert np.histogram(whole.sample[:, 0], 10, (0, 30_000))[0].min() > 0.08 * len(whole.sample)
    assert np.unique(whole.sample[:, 1]).size > 100


def test_statistics_do_not_depend_on_how_rows_are_batched():
    x = np.random.default_rng(1).normal(size=(300, 6)).astype(np.float32) ** 3
    whole, parts = (InputStatistics(6, True, True) for _ in range(2))
    whole.add(x)
    for part in np.array_split(x, [1, 7, 90]):
        parts.add(part)
    parts.add(x[:0])
    assert whole.rows == parts.rows == 300
    np.testing.assert_allclose(whole.hessian, parts.hessian)
    np.testing.assert_array_equal(whole.sample, parts.sample)
    for calibration in ("min-max", "percentile", "mse"):
        scales = [statistics.input_scale(calibration, 99) for statistics in (whole, parts)]
        np.testing.assert_allclose(*scales, rtol=2e-3)
    largest = np.abs(x).max()
    np.testing.assert_allclose(whole.input_scale("min-max", 99), largest / 127, rtol=1e-6)
    np.testing.assert_allclose(whole.input_scale("percentile", 99) * 127, np.percentile(np.abs(x), 99), rtol=0.01)
    assert InputStatistics(6).input_scale("mse", 99) == 1


def test_the_mse_scale_clips_rare_large_values():
    x = np.random.default_rng(1).normal(size=(20000, 1)).astype(np.float32)
    x[0] = 300
    seen = InputStatistics(1)
    seen.add(x)
    scale = float(seen.input_scale("mse", 99))

    def error(scale):
        return np.square(np.clip(np.rint(x / scale), -127, 127) * scale - x).mean()

    assert error(scale) <= 1.05 * min(error(300 / 127 * ratio) for ratio in np.linspace(0.02, 1, 99))


def test_activations_that_are_not_finite_are_refused():
    with pytest.raises(InputError, match="NaN or infinite activations"):
        InputStatistics(2).add(np.float32([[1, np.nan]]))
