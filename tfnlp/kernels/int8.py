"""Exact products of 8-bit integers."""

import tensorflow as tf

from tfnlp.kernels.choice import FEWEST_ROWS, FLOAT, ONEDNN, current_product, with_xla
from tfnlp.kernels.onednn import onednn_product


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
