"""The parameter tree of a model: every path with its shape and initializer.

It is derived from the configuration alone, for every family. Both engines build exactly this tree and a
family's weight table fills exactly this tree; tests compare all three.
"""

import math
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from duonlp.config import AttentionConfig, LayerConfig, LayerQuantization, NormConfig, PoolingConfig, TransformerConfig
from duonlp.dtypes import without_float16
from duonlp.errors import ConfigError
from duonlp.heads import HEADS, SENTENCE_OUTPUTS
from duonlp.layer_config import QUANTIZED_LEAVES
from duonlp.positions import sinusoidal_table, split_sinusoidal_table


@dataclass(frozen=True)
class Parameter:
    """Shape and initializer of one parameter.

    Attributes:
        shape: Shape of the parameter.
        init: ``normal`` (with ``std``), ``zeros``, ``ones``, ``sinusoidal`` or ``split_sinusoidal``.
        std: Standard deviation of ``normal``.
        keeps_float32: Whether the parameter is stored in float32 beside others in float16.
        dtype: Name of the dtype in which a part of a quantized layer is always stored; None for a parameter that is trained.
    """

    shape: tuple[int, ...]
    init: str
    std: float = 0.0
    keeps_float32: bool = False
    dtype: str | None = None

    @property
    def size(self) -> int:
        """Number of values."""
        return math.prod(self.shape)

    def stored_dtype(self, dtype: Any) -> Any:
        """Return the dtype in which the parameter is stored where most are stored in ``dtype``."""
        if self.dtype is not None:
            return self.dtype
        return without_float16(dtype) if self.keeps_float32 else dtype


HEAD_PREFIXES = ("lm_head", "pooler", "classifier", "qa_outputs", "next_sentence", "sentence_order", "discriminator")
"""First path components of parameters that do not belong to the base model."""


def decays(path: str) -> bool:
    """Return whether weight decay applies to a parameter: to kernels and embeddings, not to biases and norms."""
    return path.rsplit("/", 1)[-1] in ("kernel", "embedding")


def parameters(cfg: TransformerConfig, head: str = "base") -> dict[str, Parameter]:
    """Return the parameter tree as a mapping from path to Parameter, in a fixed order.

    A quantized layer has integers in place of its kernel or table, and further parameters beside it, see
    :func:`quantized_parameters`.

    Raises:
        ConfigError: The family does not support the head.
    """
    from duonlp.architectures import class_name

    class_name(cfg.model_type, head)
    tree = _Tree(cfg.initializer_range, cfg.fan_in_init, cfg.norm)
    _embeddings(tree, cfg, "embeddings")
    _stack(tree, cfg)
    if cfg.decoder is not None:
        _embeddings(tree, cfg.as_decoder(), "decoder_embeddings", words=not cfg.decoder.shares_words)
        _stack(tree, cfg.as_decoder())
    _head(tree, cfg, head)
    if cfg.quantization is None or cfg.quantization.simulated:
        return tree.rows
    rows: dict[str, Parameter] = {}
    for path, parameter in tree.rows.items():
        layer, _, leaf = path.rpartition("/")
        quantization = cfg.quantization.of(layer) if leaf in QUANTIZED_LEAVES else None
        rows |= {path: parameter} if quantization is None else quantized_parameters(path, parameter.shape, quantization)
    return rows


def quantized_parameters(path: str, shape: tuple[int, ...], quantization: LayerQuantization) -> dict[str, Parameter]:
    """Return the parameters of a quantized layer that replace its kernel or table, by path.

    Args:
        path: Path of the kernel [in, out] or table [rows, width].
        shape: Its shape.
        quantization: How the layer is quantized.

    Returns:
        ``path``: int8, or for 4 bits uint8 with two values per byte along the first axis of a kernel ([ceil(in / 2), out]) and
        the last of a table, the first value in the low half, as value + 8; ``path + "_scale"``: float32 [out], [groups, out] or
        [rows]; for static activations ``layer/input_scale``: float32 []; for scaled channels ``layer/channel_scale``: float32
        [in].
    """
    layer, _, leaf = path.rpartition("/")
    is_kernel = leaf == "kernel"
    (first, last), group = shape, quantization.group_size
    stored = shape
    if quantization.bits == 4:
        stored = (math.ceil(first / 2), last) if is_kernel else (first, math.ceil(last / 2))
    scales = (last,) if is_kernel else (first,)
    if is_kernel and group is not None:
        scales = math.ceil(first / group), last
    out = {
        path: Parameter(stored, "zeros", dtype="int8" if quantization.bits == 8 else "uint8"),
        f"{path}_scale": Parameter(scales, "ones", dtype="float32"),
    }
    if quantization.activations == "static":
        out[f"{layer}/input_scale"] = Parameter((), "ones", dtype="float32")
    if quantization.channel_scaled:
        out[f"{layer}/channel_scale"] = Parameter((first,), "ones", dtype="float32")
    return out


def count_parameters(cfg: TransformerConfig, head: str = "base") -> int:
    """Return the number of values in all parameters of a model, before any of it is quantized.

    Raises:
        ConfigError: The family does not support the head.
    """
    return sum(parameter.size for parameter in parameters(cfg.replace(quantization=None), head).values())


class _Tree:
    """Collects parameters by path.

    Attributes:
        rows: Parameters by path.
        std: Default standard deviation.
        fan_in: Whether kernels scale it by 1 / sqrt(inputs) (T5).
        default_norm: Kind of the norms of which nothing else is said.
    """

    def __init__(self, std: float, fan_in: bool, default_norm: NormConfig):
        self.rows: dict[str, Parameter] = {}
        self.std, self.fan_in, self.default_norm = std, fan_in, default_norm

    def dense(
        self, path: str, size_in: int, size_out: int, bias: bool = True, std: float | None = None, wide: bool = False
    ) -> None:
        if self.fan_in:
            std = self.std / math.sqrt(size_in) * (1 if std is None else std)
        self.rows[f"{path}/kernel"] = Parameter((size_in, size_out), "normal", self.std if std is None else std, wide)
        if bias:
            self.rows[f"{path}/bias"] = Parameter((size_out,), "zeros", keeps_float32=wide)

    def table(self, path: str, rows: int, width: int, init: str = "normal", std: float | None = None) -> None:
        self.rows[f"{path}/embedding"] = Parameter((rows, width), init, self.std if std is None else std)

    def norm(self, path: str, width: int, norm: NormConfig | None = None) -> None:
        norm = self.default_norm if norm is None else norm
        self.rows[f"{path}/scale"] = Parameter((width,), "zeros" if norm.unit_offset else "ones")
        if norm.bias and not norm.rms:
            self.rows[f"{path}/bias"] = Parameter((width,), "zeros")


def _embeddings(tree: _Tree, cfg: TransformerConfig, path: str, words: bool = True) -> None:
    e = cfg.embedding
    if e.patches is not None:
        tree.dense(f"{path}/patches/projection", e.patches.size, e.size)
        for name in e.patches.special_tokens:
            tree.rows[f"{path}/patches/{name}"] = Parameter((1, e.size), "normal", tree.std)
    elif words:
        tree.table(f"{path}/word_embeddings", e.vocab_size, e.size)
    if e.positions == "learned":
        init = "sinusoidal" if e.sinusoidal_init else "normal"
        tree.table(f"{path}/position_embeddings", e.max_positions, e.size, init)
    if e.stored_positions:
        tree.rows[f"{path}/position_table"] = Parameter((e.max_positions, e.size), "split_sinusoidal")
    if e.type_vocab_size:
        tree.table(f"{path}/token_type_embeddings", e.type_vocab_size, e.size)
    if e.norm:
        tree.norm(f"{path}/norm", e.size)
    if e.projection:
        tree.dense(f"{path}/projection", e.size, cfg.hidden_size)


def _stack(tree: _Tree, cfg: TransformerConfig) -> None:
    if cfg.attention.relative_buckets:
        shape = cfg.attention.relative_buckets, cfg.attention.num_heads
        std = cfg.initializer_range / math.sqrt(cfg.hidden_size) if cfg.fan_in_init else None
        tree.table(f"{cfg.stack}/relative_attention", *shape, std=std)
    for i, layer in enumerate(cfg.layers.weights):
        _layer(tree, cfg, layer, f"{cfg.stack}/layer_{i}")
    if cfg.norm.final:
        tree.norm(f"{cfg.stack}/final_norm", cfg.hidden_size)


def norm_names(layer: LayerConfig, norm: NormConfig, block: str) -> list[str]:
    """Return the names of a block's norms: one, for "both" also that of its output, or none.

    Args:
        layer: The layer.
        norm: Its norms' configuration.
        block: "attention", "cross_attention" or "feed_forward".
    """
    has_norm = norm.position != "none" and getattr(layer, f"{block}_norm", True)
    return [f"{block}_norm"] * has_norm + [f"{block}_output_norm"] * (norm.position == "both")


def layer_blocks(layer: LayerConfig) -> tuple[str, ...]:
    """Return the names of a layer's blocks, in order."""
    return "attention", *(["cross_attention"] if layer.cross_attention is not None else []), "feed_forward"


def _layer(tree: _Tree, cfg: TransformerConfig, layer: LayerConfig, path: str) -> None:
    width, norm = cfg.hidden_size, layer.norm or cfg.norm
    residual_std = cfg.initializer_range / math.sqrt(2 * cfg.num_layers) if cfg.scaled_residual_init else None

    def norms(block: str) -> None:
        for name in norm_names(layer, norm, block):
            tree.norm(f"{path}/{name}", width, norm)

    def attention(name: str, config: AttentionConfig) -> None:
        query_std = config.head_dim**-0.5 if cfg.fan_in_init else None
        tree.dense(f"{path}/{name}/query", width, config.size, config.has_bias("query"), query_std)
        tree.dense(f"{path}/{name}/key", width, config.kv_size, config.has_bias("key"))
        tree.dense(f"{path}/{name}/value", width, config.kv_size, config.has_bias("value"))
        if config.qk_norm is not None:
            sizes = (config.size, config.kv_size) if config.qk_norm_over_heads else (config.head_dim,) * 2
            for part, size in zip(("query", "key"), sizes):
                tree.norm(f"{path}/{name}/{part}_norm", size, config.qk_norm)
        tree.dense(f"{path}/{name}/output", config.size, width, config.has_bias("output"), residual_std)
        norms(name)

    attention("attention", layer.attention)
    if layer.cross_attention is not None:
        attention("cross_attention", layer.cross_attention)
    ff = layer.feed_forward
    for name in ("gate", "up") if ff.gated else ("up",):
        tree.dense(f"{path}/feed_forward/{name}", width, ff.size, ff.bias)
    tree.dense(f"{path}/feed_forward/down", ff.size, width, ff.bias, residual_std, ff.float32_output)
    norms("feed_forward")


def _head(tree: _Tree, cfg: TransformerConfig, head: str) -> None:
    pooling = pooling_of(cfg, head)
    if pooling is not None and pooling.dense:
        tree.dense("pooler/dense", cfg.hidden_size, pooling.size or cfg.hidden_size, pooling.dense_bias)
    if pooling is not None and pooling.norm:
        tree.norm("pooler/norm", cfg.hidden_size)
    for name in HEADS[head].layers:
        _HEAD_LAYERS[name](tree, cfg)


def _lm_head(tree: _Tree, cfg: TransformerConfig) -> None:
    lm, words = cfg.lm_head, cfg.as_decoder().embedding
    if lm.transform:
        tree.dense("lm_head/transform", cfg.hidden_size, words.size, lm.transform_bias)
        tree.norm("lm_head/norm", words.size)
    if not lm.tied:
        # T5 initializes its output like its tables; other families use the same std as for every kernel.
        std = math.sqrt(words.size) if cfg.fan_in_init else None
        tree.dense("lm_head/output", words.size, words.vocab_size, bias=False, std=std)
    if lm.bias:
        tree.rows["lm_head/bias"] = Parameter((words.vocab_size,), "zeros")


def _qa_outputs(tree: _Tree, cfg: TransformerConfig) -> None:
    if cfg.num_labels != 2 and cfg.decoder is None:  # BART configs have 3 labels, but its head has 2 outputs
        raise ConfigError(
            f"a question-answering head has 2 outputs (start and end), but this config has {cfg.num_labels} labels; "
            "pass num_labels=2"
        )
    tree.dense("qa_outputs", cfg.hidden_size, 2)


def _discriminator(tree: _Tree, cfg: TransformerConfig) -> None:
    tree.dense("discriminator/dense", cfg.hidden_size, cfg.hidden_size)
    tree.dense("discriminator/output", cfg.hidden_size, 1)


def sentence_classes(cfg: TransformerConfig) -> int:
    """Return the number of outputs of the sentence pair layer of the head "pretraining"."""
    classes = SENTENCE_OUTPUTS[cfg.sentence_head].classes(cfg)
    assert classes is not None
    return classes


_HEAD_LAYERS: dict[str, Callable[[_Tree, TransformerConfig], None]] = {
    "lm_head": _lm_head,
    "classifier": lambda tree, cfg: tree.dense(
        "classifier", cfg.hidden_size, cfg.num_labels, cfg.classification.classifier_bias
    ),
    "token_classifier": lambda tree, cfg: tree.dense("classifier", cfg.hidden_size, cfg.num_labels),
    "choice_classifier": lambda tree, cfg: tree.dense("classifier", cfg.hidden_size, 1),
    "qa_outputs": _qa_outputs,
    "next_sentence": lambda tree, cfg: tree.dense("next_sentence", cfg.hidden_size, 2),
    "sentence_pair": lambda tree, cfg: tree.dense(cfg.sentence_head, cfg.hidden_size, sentence_classes(cfg)),
    "discriminator": _discriminator,
}
"""Parameters of each layer that duonlp.heads names."""


def pooling_of(cfg: TransformerConfig, head: str) -> PoolingConfig | None:
    """Return the pooling that a head applies to the last hidden states, or None."""
    return getattr(cfg, HEADS[head].pooling) if HEADS[head].pooling else None


def initial_value(path: str, parameter: Parameter, seed: int = 0) -> np.ndarray:
    """Return the float32 initial value of a parameter.

    It depends on (seed, path) alone, so that both engines start from the same numbers.
    """
    if parameter.init == "zeros":
        return np.zeros(parameter.shape, np.float32)
    if parameter.init == "ones":
        return np.ones(parameter.shape, np.float32)
    if parameter.init == "sinusoidal":
        return sinusoidal_table(*parameter.shape)
    if parameter.init == "split_sinusoidal":
        return split_sinusoidal_table(*parameter.shape)
    generator = np.random.Generator(np.random.Philox(np.random.SeedSequence([seed, zlib.crc32(path.encode())])))
    return generator.standard_normal(parameter.shape, np.float32) * np.float32(parameter.std)
