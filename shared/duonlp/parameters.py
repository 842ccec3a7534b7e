"""The parameter tree of a model: every path with its shape and initializer.

It is derived from the configuration alone, for every family. Both engines build exactly this tree and a
family's weight table fills exactly this tree; tests compare all three.
"""

import math
import zlib
from dataclasses import dataclass

import numpy as np

from duonlp.config import AttentionConfig, PoolingConfig, TransformerConfig
from duonlp.errors import ConfigError


@dataclass(frozen=True)
class Parameter:
    """Shape and initializer of one parameter.

    Attributes:
        shape: Shape of the parameter.
        init: ``normal`` (with ``std``), ``zeros``, ``ones`` or ``sinusoidal``.
        std: Standard deviation of ``normal``.
    """

    shape: tuple[int, ...]
    init: str
    std: float = 0.0

    @property
    def size(self) -> int:
        """Number of values."""
        return math.prod(self.shape)


HEAD_PREFIXES = ("lm_head", "pooler", "classifier", "qa_outputs", "next_sentence", "sentence_order", "discriminator")
"""First path components of parameters that do not belong to the base model."""


def decays(path: str) -> bool:
    """Return whether weight decay applies to a parameter: to kernels and embeddings, not to biases and norms."""
    return path.rsplit("/", 1)[-1] in ("kernel", "embedding")


def parameters(cfg: TransformerConfig, head: str = "base") -> dict[str, Parameter]:
    """Return the parameter tree as a mapping from path to Parameter, in a fixed order.

    Raises:
        ConfigError: The family does not support the head.
    """
    from duonlp.architectures import class_name

    class_name(cfg.model_type, head)
    tree = _Tree(cfg.initializer_range, cfg.fan_in_init, cfg.norm.rms)
    _embeddings(tree, cfg, "embeddings")
    _stack(tree, cfg)
    if cfg.decoder is not None:
        _embeddings(tree, cfg.as_decoder(), "decoder_embeddings", words=not cfg.decoder.shares_words)
        _stack(tree, cfg.as_decoder())
    _head(tree, cfg, head)
    return tree.rows


def count_parameters(cfg: TransformerConfig, head: str = "base") -> int:
    """Return the number of values in all parameters of a model.

    Raises:
        ConfigError: The family does not support the head.
    """
    return sum(parameter.size for parameter in parameters(cfg, head).values())


class _Tree:
    """Collects parameters by path.

    Attributes:
        rows: Parameters by path.
        std: Default standard deviation.
        fan_in: Whether kernels scale it by 1 / sqrt(inputs) (T5).
        rms: Whether norms have no bias.
    """

    def __init__(self, std: float, fan_in: bool, rms: bool):
        self.rows: dict[str, Parameter] = {}
        self.std, self.fan_in, self.rms = std, fan_in, rms

    def dense(self, path: str, size_in: int, size_out: int, bias: bool = True, std: float | None = None) -> None:
        if self.fan_in:
            std = self.std / math.sqrt(size_in) * (1 if std is None else std)
        self.rows[f"{path}/kernel"] = Parameter((size_in, size_out), "normal", self.std if std is None else std)
        if bias:
            self.rows[f"{path}/bias"] = Parameter((size_out,), "zeros")

    def table(self, path: str, rows: int, width: int, init: str = "normal", std: float | None = None) -> None:
        self.rows[f"{path}/embedding"] = Parameter((rows, width), init, self.std if std is None else std)

    def norm(self, path: str, width: int) -> None:
        self.rows[f"{path}/scale"] = Parameter((width,), "ones")
        if not self.rms:
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
    for i in range(cfg.num_layer_weights):
        _layer(tree, cfg, f"{cfg.stack}/layer_{i}")
    if cfg.norm.final:
        tree.norm(f"{cfg.stack}/final_norm", cfg.hidden_size)


def _layer(tree: _Tree, cfg: TransformerConfig, path: str) -> None:
    width = cfg.hidden_size
    residual_std = cfg.initializer_range / math.sqrt(2 * cfg.num_layers) if cfg.scaled_residual_init else None

    def attention(name: str, config: AttentionConfig) -> None:
        inner = config.num_heads * config.head_dim
        query_std = config.head_dim**-0.5 if cfg.fan_in_init else None
        tree.dense(f"{path}/{name}/query", width, inner, config.bias, query_std)
        tree.dense(f"{path}/{name}/key", width, inner, config.bias)
        tree.dense(f"{path}/{name}/value", width, inner, config.bias)
        tree.dense(f"{path}/{name}/output", inner, width, config.has_output_bias, residual_std)
        tree.norm(f"{path}/{name}_norm", width)

    attention("attention", cfg.attention)
    if cfg.cross_attention is not None:
        attention("cross_attention", cfg.cross_attention)
    ff = cfg.feed_forward
    for name in ("gate", "up") if ff.gated else ("up",):
        tree.dense(f"{path}/feed_forward/{name}", width, ff.size, ff.bias)
    tree.dense(f"{path}/feed_forward/down", ff.size, width, ff.bias, residual_std)
    tree.norm(f"{path}/feed_forward_norm", width)


def _head(tree: _Tree, cfg: TransformerConfig, head: str) -> None:
    width = cfg.hidden_size
    pooling = pooling_of(cfg, head)
    if pooling is not None and pooling.dense:
        tree.dense("pooler/dense", width, width)
    if head in ("masked-lm", "causal-lm", "pretraining", "seq2seq-lm"):
        lm, words = cfg.lm_head, cfg.as_decoder().embedding
        if lm.transform:
            tree.dense("lm_head/transform", width, words.size)
            tree.norm("lm_head/norm", words.size)
        if not lm.tied:
            # T5 initializes its output like its tables; other families use the same std as for every kernel.
            std = math.sqrt(words.size) if cfg.fan_in_init else None
            tree.dense("lm_head/output", words.size, words.vocab_size, bias=False, std=std)
        if lm.bias:
            tree.rows["lm_head/bias"] = Parameter((words.vocab_size,), "zeros")
    if head in ("sequence-classification", "image-classification", "token-classification", "multiple-choice"):
        outputs = 1 if head == "multiple-choice" else cfg.num_labels
        bias = cfg.classification.classifier_bias or head == "token-classification"
        tree.dense("classifier", width, outputs, bias)
    if head == "question-answering":
        if cfg.num_labels != 2 and cfg.decoder is None:  # BART configs have 3 labels, but its head has 2 outputs
            raise ConfigError(
                f"a question-answering head has 2 outputs (start and end), but this config has {cfg.num_labels} labels; "
                "pass num_labels=2"
            )
        tree.dense("qa_outputs", width, 2)
    if head == "next-sentence-prediction":
        tree.dense("next_sentence", width, 2)
    if head == "pretraining":
        tree.dense(cfg.sentence_head, width, cfg.num_labels if cfg.sentence_head == "sentence_order" else 2)
    if head == "replaced-token-detection":
        tree.dense("discriminator/dense", width, width)
        tree.dense("discriminator/output", width, 1)


def pooling_of(cfg: TransformerConfig, head: str) -> PoolingConfig | None:
    """Return the pooling that a head applies to the last hidden states, or None."""
    if head in ("base", "next-sentence-prediction", "pretraining"):
        return cfg.pooler
    if head == "multiple-choice":
        return cfg.multiple_choice
    return cfg.classification if head in ("sequence-classification", "image-classification") else None


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
    generator = np.random.Generator(np.random.Philox(np.random.SeedSequence([seed, zlib.crc32(path.encode())])))
    return generator.standard_normal(parameter.shape, np.float32) * np.float32(parameter.std)


def sinusoidal_table(rows: int, width: int) -> np.ndarray:
    """Return float32 [rows, width]: sines in even columns, cosines in odd ones (Vaswani et al. 2017, section 3.5)."""
    angles = np.arange(rows)[:, None] / np.power(10000, 2 * (np.arange(width) // 2) / width)
    table = np.empty((rows, width), np.float32)
    table[:, 0::2], table[:, 1::2] = np.sin(angles[:, 0::2]), np.cos(angles[:, 1::2])
    return table
