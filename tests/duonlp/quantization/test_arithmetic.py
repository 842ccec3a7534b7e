"""Test the integers and scales of quantized layers."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from duonlp.config import LayerQuantization
from duonlp.errors import ConfigError, InputError
from duonlp.quantization import arithmetic

VALUES = st.floats(-(2.0**90), 2.0**90, width=32)
KERNELS = arrays(np.float32, st.tuples(st.integers(1, 9), st.integers(1, 5)), elements=VALUES)


@given(
    KERNELS, st.sampled_from([LayerQuantization(), LayerQuantization(group_size=2), LayerQuantization(group_size=20)])
)
def test_values_of_8_bits_are_off_by_half_a_step(kernel, quantization):
    integers, scales = arithmetic.quantize_kernel(kernel, quantization)
    steps = arithmetic.expanded(scales, len(kernel), quantization)
    error = np.abs(arithmetic.dequantize_kernel(integers, scales, quantization).astype(float) - kernel)
    assert (error <= 0.5001 * steps).all() and np.abs(integers.astype(int)).max() <= 127
    group = quantization.group_size
    assert scales.shape == ((kernel.shape[1],) if group is None else (-(-len(kernel) // group), kernel.shape[1]))


@given(KERNELS, st.booleans())
def test_values_of_4_bits_use_all_levels_and_no_more(kernel, searches):
    quantization = LayerQuantization(bits=4, group_size=3)
    scales = arithmetic.kernel_scales(kernel, quantization, searches)
    integers, _ = arithmetic.quantize_kernel(kernel, quantization, scales)
    assert integers.min() >= -8 and integers.max() <= 7
    plain = arithmetic.quantize_kernel(kernel, quantization, arithmetic.kernel_scales(kernel, quantization, False))
    errors = [
        np.square(arithmetic.dequantize_kernel(*parts, quantization) - kernel.astype(float)).sum()
        for parts in ((integers, scales), plain)
    ]
    assert errors[0] <= errors[1] * (1 + 1e-5)


@given(arrays(np.int8, st.tuples(st.integers(1, 9), st.integers(1, 4)), elements=st.integers(-8, 7)))
def test_packed_integers_are_the_same_when_unpacked(integers):
    packed = arithmetic.pack_int4(integers)
    assert packed.shape == (-(-len(integers) // 2), integers.shape[1]) and packed.dtype == np.uint8
    np.testing.assert_array_equal(arithmetic.unpack_int4(packed, len(integers)), integers)


@given(arrays(np.float32, (3, 4), elements=VALUES))
def test_rows_of_a_table_and_of_activations_have_their_own_scales(x):
    for integers, scales in (arithmetic.quantize_table(x), arithmetic.quantize_rows(x)):
        scales = scales.reshape(-1, 1).astype(float)
        assert (np.abs(integers * scales - x) <= 0.5001 * scales + np.abs(x) * 1e-6 + 1e-35).all()
    zeros, scales = arithmetic.quantize_rows(np.zeros((2, 3)))
    assert not zeros.any() and not scales.any()
    assert arithmetic.quantize_table(np.zeros((2, 3)))[1].tolist() == [1, 1]


def test_the_reference_layer_is_close_to_the_float_one_for_every_kind():
    rng = np.random.default_rng(0)
    x, kernel, bias = rng.normal(size=(5, 12)), rng.normal(size=(12, 4)), rng.normal(size=4)
    expected = x @ kernel + bias
    kinds = {
        LayerQuantization(): 0.02, LayerQuantization(activations="dynamic"): 0.04,
        LayerQuantization(activations="static"): 0.04, LayerQuantization(bits=4, group_size=5): 0.4,
        LayerQuantization(channel_scaled=True): 0.03,
    }  # fmt: skip
    for quantization, bound in kinds.items():
        factors = np.linspace(0.5, 2, 12).astype(np.float32) if quantization.channel_scaled else None
        scaled = kernel if factors is None else kernel * factors[:, None]
        parts = arithmetic.quantize_kernel(scaled, quantization)
        y = arithmetic.linear(x, *parts, quantization, bias, np.float32(np.abs(x).max() / 127), factors)
        assert 0 < np.abs(y - expected).max() < bound * np.abs(expected).max(), quantization


def test_what_no_integer_stands_for_is_refused():
    with pytest.raises(InputError, match=r"encoder/kernel has 2 values that are NaN or infinite"):
        arithmetic.check_finite("encoder/kernel", np.array([1, np.nan, np.inf]))
    for options, message in (
        ({"bits": 3}, "8 or 4 bits"),
        ({"activations": "none"}, "float, dynamic, static"),
        ({"group_size": 0}, "positive"),
        ({"bits": 4, "activations": "dynamic"}, "weights of 8 bits with one scale"),
    ):
        with pytest.raises(ConfigError, match=message):
            LayerQuantization(**options)
