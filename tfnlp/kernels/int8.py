"""Exact products of 8-bit integers."""

from typing import Any

import tensorflow as tf
from tensorflow.python.framework import op_def_library

from tfnlp.kernels.choice import FEWEST_ROWS, FLOAT, ONEDNN, current_product, with_xla


def int8_product(x: tf.Tensor, kernel: tf.Tensor, transposed: bool = False) -> tf.Tensor:
    """Multiply integers x int8 [T, in] with a kernel int8 [in, out], giving float32 [T, out].

    The result is the exact integer, or where float32 cannot hold it (from 2^24 on), the nearest float32. (An exported model
    computes in float32, whose sums may then be rounded more than once.)

    Args:
        x: Quantized activations, at least -127 as all quantized values are.
        kernel: Quantized weights.
        transposed: Whether the kernel is [out, in].
    """
    if current_product() == ONEDNN:
        return onednn_product(x, kernel, transposed)
    if current_product() == FLOAT:
        return tf.matmul(tf.cast(x, tf.float32), tf.cast(kernel, tf.float32), transpose_b=transposed)
    return (_transposed_product if transposed else _product)(x, kernel)


def _xla_product(x: tf.Tensor, kernel: tf.Tensor, transposed: bool) -> tf.Tensor:
    rows = tf.shape(x)[0]
    if x.shape[0] is None or x.shape[0] < FEWEST_ROWS:
        x = tf.pad(x, [[0, tf.maximum(FEWEST_ROWS - rows, 0)], [0, 0]])
    return tf.cast(tf.matmul(x, kernel, transpose_b=transposed, output_type=tf.int32)[:rows], tf.float32)


# TensorFlow's own kernel takes 40 times as long.
_product = with_xla(lambda x, kernel: _xla_product(x, kernel, False))
_transposed_product = with_xla(lambda x, kernel: _xla_product(x, kernel, True))


def onednn_product(x: tf.Tensor, kernel: tf.Tensor, transposed: bool = False) -> tf.Tensor:
    """Multiply as :func:`int8_product` does, with an operation of TensorFlow's graph that XLA does not have."""
    bound = tf.constant(127.0)
    bias = tf.zeros([kernel.shape[0 if transposed else 1]])
    apply: Any = op_def_library.apply_op  # the operation has no function of its own
    outputs, _ = apply(
        "_QuantizedMatMul", name="int8_product",
        device_inputs=[tf.bitcast(x, tf.qint8), tf.bitcast(kernel, tf.qint8), bias],
        host_inputs=[-bound, bound, -bound, bound],  # of both factors, so that a step is 1
        Tdevice_outputs=[tf.float32], Thost_outputs=[], T1=tf.qint8, T2=tf.qint8, Tbias=tf.float32, U=tf.float32,
        Tout=tf.float32, transpose_a=False, transpose_b=transposed, is_weight_const=False, is_bias_const=True,
        fused_ops=["BiasAdd", "Dequantize"], input_quant_mode="SCALED", output_quant_mode="SCALED", leakyrelu_alpha=0.0,
    )  # fmt: skip
    return outputs[0]
