"""oneDNN in TensorFlow's graph, and its product of 8-bit integers."""

import importlib
from typing import Any

import tensorflow as tf
from tensorflow.python.framework import op_def_library


def onednn_product(x: tf.Tensor, kernel: tf.Tensor, transposed: bool = False) -> tf.Tensor:
    """Multiply as ``int8_product`` does, with an operation of TensorFlow's graph that XLA does not have.

    Args:
        x: int8 [T, in].
        kernel: int8 [in, out].
        transposed: Whether the kernel is [out, in].
    """
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


def graph_has_onednn() -> bool | None:
    """Return whether TensorFlow's graph uses oneDNN for floating-point operations; None if unknown.

    On Linux it does by default if the processor has AMX, VNNI or AVX512-BF16, else only with TF_ENABLE_ONEDNN_OPTS=1.
    """
    try:
        port: Any = importlib.import_module("tensorflow.python.util._pywrap_util_port")
        return bool(port.IsMklEnabled())
    except (ImportError, AttributeError):  # not part of TensorFlow's public interface
        return None
