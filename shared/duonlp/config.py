"""A transformer model described as data.

Model families differ in these fields and in nothing else: both engines read them, and neither ever asks for
a model's name. ``duonlp.architectures`` translates a Hugging Face ``config.json`` into these classes
and back.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, fields, is_dataclass, replace
from functools import cached_property
from typing import Any, TypeVar, cast

from duonlp.errors import ConfigError
from duonlp.input_specs import InputSpec, pixel_inputs, target_inputs, token_inputs
from duonlp.layer_config import (
    AttentionConfig,
    FeedForwardConfig,
    LayerConfig,
    LayerPattern,
    LayerQuantization,
    NormConfig,
    QuantizationConfig,
    RotaryConfig,
    RotaryScaling,
)

__all__ = (
    "ACTIVATIONS", "POSITIONS", "POSITION_TABLES", "PROBLEM_TYPES", "UNLIMITED", "AttentionConfig", "DecoderConfig",
    "EmbeddingConfig", "FeedForwardConfig", "LMHeadConfig", "LayerConfig", "LayerPattern", "LayerQuantization",
    "NormConfig", "PatchConfig", "PoolingConfig", "QuantizationConfig", "RotaryConfig", "RotaryScaling",
    "TransformerConfig", "activation_name",
)  # fmt: skip

ACTIVATIONS = (
    "gelu", "gelu_new", "gelu_pytorch_tanh", "gelu_fast", "gelu_10", "quick_gelu", "gelu_accurate", "relu", "relu2",
    "relu6", "silu", "mish", "sigmoid", "tanh", "leaky_relu", "hardswish", "laplace", "linear",
)  # fmt: skip
"""Activations both engines implement, by their Transformers names."""

ACTIVATION_ALIASES = {
    "swish": "silu",
    "gelu_python": "gelu",
    "gelu_python_tanh": "gelu_pytorch_tanh",
    None: "linear",
}


def activation_name(name: str | None) -> str:
    """Return the canonical name of a Transformers activation.

    Raises:
        ConfigError: No engine implements the activation.
    """
    canonical = ACTIVATION_ALIASES.get(name, name)
    if canonical not in ACTIVATIONS:
        raise ConfigError(f"activation {canonical!r} is not supported; choose one of {', '.join(ACTIVATIONS)}")
    return canonical


POSITIONS = ("learned", "sinusoidal", "tensor2tensor", "rotary", "none")
"""Sources of positions: a trained table; the fixed sinusoids of Vaswani et al. 2017 or tensor2tensor's variant (see
duonlp.positions.fixed_table); attention that rotates queries and keys (RotaryConfig); or none, for models whose attention
adds relative biases (T5)."""

POSITION_TABLES = POSITIONS[:3]
"""Those that add a table's rows to the embeddings."""

MOST_PATCHES = 1 << 16
"""Patches of an image, for which positions may be interpolated."""

MOST_FIXED_POSITIONS = 1 << 28
"""Values of a position table that is computed, not loaded: 1 GiB."""


@dataclass(frozen=True)
class PatchConfig:
    """Image patches as tokens: each patch is flattened and projected, a convolution whose stride is its kernel's size.

    See Dosovitskiy et al. 2020, https://arxiv.org/abs/2010.11929.

    Raises:
        ConfigError: The image is not a whole number of patches, or has too many.
    """

    image_size: tuple[int, int]  # height and width that the position table is for
    patch_size: tuple[int, int]
    channels: int = 3
    special_tokens: tuple[str, ...] = ("class_token",)  # trained vectors before the patches, by parameter name

    def __post_init__(self):
        if any(size < 1 or patch < 1 or size % patch for size, patch in zip(self.image_size, self.patch_size)):
            raise ConfigError(
                f"image_size {self.image_size} is not a multiple of patch_size {self.patch_size}; change one of them"
            )
        if self.num_tokens > MOST_PATCHES:
            raise ConfigError(
                f"an image of size {self.image_size} has {self.num_tokens:,} patches; at most {MOST_PATCHES:,} are supported"
            )

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of patches."""
        (height, width), (patch_height, patch_width) = self.image_size, self.patch_size
        return height // patch_height, width // patch_width

    @property
    def num_tokens(self) -> int:
        """Number of tokens of an image."""
        rows, columns = self.grid
        return len(self.special_tokens) + rows * columns

    @property
    def size(self) -> int:
        """Number of values of a patch."""
        return self.channels * self.patch_size[0] * self.patch_size[1]


@dataclass(frozen=True)
class EmbeddingConfig:
    """Embedding layer: words + positions + token types, then a norm, dropout and a projection.

    With ``patches``, image patches take the place of words.

    Raises:
        ConfigError: No position is left after the offset, or a table of fixed positions would be too large or too narrow.
    """

    vocab_size: int  # 0: no word table
    size: int  # width of the tables; `projection` widens it to hidden_size
    max_positions: int  # rows of the position table
    positions: str = "learned"  # one of POSITIONS
    position_offset: int = 0  # id of the first position (RoBERTa starts after its padding id)
    positions_skip_padding: bool = False  # padding gets position `padding_id` and is not counted
    stored_positions: bool = False  # fixed positions are a table of the checkpoint, not the computed one
    sinusoidal_init: bool = False  # initialize the position table with sinusoids (DistilBERT)
    type_vocab_size: int = 0  # rows of the token type table; 0: no table
    token_types_from_words: bool = False  # look token type ids up in the word table (GPT-2)
    padding_id: int | None = None  # row that receives no gradient from the lookup, like torch's padding_idx
    scale: bool = False  # multiply word vectors by sqrt(size)
    norm: bool = True
    projection: bool = False
    dropout: float = 0.0
    patches: PatchConfig | None = None

    def __post_init__(self):
        if self.positions in POSITION_TABLES and not 0 <= self.position_offset < self.max_positions:
            raise ConfigError(
                f"the position table has {self.max_positions} rows and positions start at {self.position_offset}; use more "
                "positions, or a smaller pad_token_id where they start after it"
            )
        if self.positions in POSITION_TABLES[1:] and self.max_positions * self.size > MOST_FIXED_POSITIONS:
            raise ConfigError(
                f"a table of {self.max_positions:,} fixed positions of width {self.size:,} would take "
                f"{self.max_positions * self.size >> 28:,} GiB; use fewer positions"
            )
        if self.positions == "tensor2tensor" and self.size < 4:
            raise ConfigError(f"tensor2tensor positions of width {self.size} are undefined; use at least 4")


@dataclass(frozen=True)
class _HasLayers:
    """Base of configurations of a stack of layers: what the first of them says, and their number."""

    layers: LayerPattern

    @property
    def attention(self) -> AttentionConfig:
        """Attention of the first layer."""
        return self.layers[0].attention

    @property
    def cross_attention(self) -> AttentionConfig | None:
        """Cross-attention of the first layer; None outside the decoder of an encoder-decoder."""
        return self.layers[0].cross_attention

    @property
    def feed_forward(self) -> FeedForwardConfig:
        """Feed-forward block of the first layer."""
        return self.layers[0].feed_forward

    @property
    def layer_order(self) -> tuple[int, ...]:
        """Layer weights used at each depth; (0, 0, 0): one set, applied three times (ALBERT)."""
        return self.layers.layer_order

    @property
    def num_layers(self) -> int:
        """Number of layers an input passes through."""
        return len(self.layers)

    @property
    def num_layer_weights(self) -> int:
        """Number of distinct sets of layer weights; less than num_layers where layers share weights."""
        return len(self.layers.weights)


@dataclass(frozen=True)
class LMHeadConfig:
    """Language modeling head: hidden states to vocabulary logits."""

    transform: bool = False  # dense + activation + norm before the output (BERT)
    transform_bias: bool = True
    activation: str = "gelu"
    bias: bool = False
    fixed_bias: bool = False  # the bias is not trained (BART's final_logits_bias)
    tied: bool = True  # the output kernel is the transposed word table
    scale: bool = False  # divide hidden states by sqrt(hidden_size) first


@dataclass(frozen=True)
class PoolingConfig:
    """Sequence pooling: select a token (or the mean), dropout, dense, activation, norm, dropout."""

    # "first", "last", "mean" (of the real tokens), "mean_with_padding" (of all), "last_non_padding", "last_eos", or "all":
    # no pooling, the rest applies to every token
    token: str = "first"
    dense: bool = True
    dense_bias: bool = True
    activation: str = "tanh"
    norm: bool = False
    dropout_before: float = 0.0
    dropout: float = 0.0
    classifier_bias: bool = True
    size: int = 0  # outputs of the dense layer; 0: hidden_size (DPR's projection)


@dataclass(frozen=True)
class DecoderConfig(_HasLayers):
    """Decoder stack of an encoder-decoder; norms, dropout and width are those of the encoder."""

    embedding: EmbeddingConfig
    shares_words: bool = True  # encoder and decoder share one word table
    start_token_id: int | None = None  # first decoder token of every target
    starts_with_last: bool = False  # the target's own last token, its language code, goes first instead (mBART)
    reads_source: bool = False  # decoder inputs default to the shifted encoder inputs (BART)

    @property
    def max_length(self) -> int:
        """Longest target that the position table allows."""
        return _max_length(self.embedding)


@dataclass(frozen=True)
class TransformerConfig(_HasLayers):
    """Complete model configuration. Immutable and hashable; change it with :meth:`replace`.

    ``extra`` holds the keys of config.json that do not affect the computation, so that saving writes them back.
    """

    model_type: str
    hidden_size: int
    embedding: EmbeddingConfig
    norm: NormConfig
    lm_head: LMHeadConfig
    pooler: PoolingConfig | None  # pooling behind the base model's `pooler_output`
    classification: PoolingConfig
    multiple_choice: PoolingConfig
    token_transform: PoolingConfig | None = None  # before the layers of heads with an output per token (ModernBERT)
    pooler_embeds: bool = False  # `pooler_output` is what the model was trained to embed texts as (DPR)
    base_class: str = ""  # Transformers class of the base model, where the family has several (DPR's towers)
    sentence_head: str = "next_sentence"  # sentence-pair objective of pretraining; "sentence_order" in ALBERT
    stack: str = "encoder"  # name of the layer stack in the parameter tree
    decoder: DecoderConfig | None = None  # second stack of an encoder-decoder
    causal: bool = False  # each token attends only to itself and earlier tokens
    hidden_dropout: float = 0.0
    token_dropout: float = 0.0  # before the token classification layer
    qa_dropout: float = 0.0
    initializer_range: float = 0.02
    scaled_residual_init: bool = False  # residual outputs use std = range / sqrt(2 * layers) (GPT-2)
    # T5: kernels use std = range / sqrt(inputs), queries additionally / sqrt(head_dim), and tables use std = range
    fan_in_init: bool = False
    labels: tuple[str, ...] = ("LABEL_0", "LABEL_1")
    problem_type: str | None = None
    pad_token_id: int | None = None
    bos_token_id: int | None = None
    eos_token_id: int | tuple[int, ...] | None = None
    quantization: QuantizationConfig | None = None  # layers that are stored as integers
    # Heads, key-value heads and feed-forward rows of each layer before some were removed; (): none were.
    unpruned_sizes: tuple[tuple[int, int | None, int], ...] = ()
    extra: Mapping[str, Any] = field(default_factory=dict, compare=False, hash=False, repr=False)

    def __post_init__(self):
        if self.problem_type not in (None, *PROBLEM_TYPES):
            raise ConfigError(
                f"problem_type {self.problem_type!r} is not supported; choose one of {', '.join(PROBLEM_TYPES)}"
            )
        if any(layer.parallel and (layer.norm or self.norm).position == "post" for layer in self.layers):
            raise ConfigError(
                "parallel layers cannot have their norms after the residual sums; use another norm position"
            )

    @property
    def pooled_size(self) -> int:
        """Length of ``pooler_output``."""
        return (0 if self.pooler is None else self.pooler.size) or self.hidden_size

    @property
    def num_labels(self) -> int:
        """Number of classes."""
        return len(self.labels)

    @property
    def id2label(self) -> dict[int, str]:
        """Mapping from class id to class name."""
        return dict(enumerate(self.labels))

    @property
    def label2id(self) -> dict[str, int]:
        """Mapping from class name to class id."""
        return {label: i for i, label in enumerate(self.labels)}

    @property
    def max_length(self) -> int:
        """Longest sequence that the positions allow, special tokens included; UNLIMITED if they set no bound."""
        return _max_length(self.embedding)

    @cached_property
    def inputs(self) -> tuple[InputSpec, ...]:
        """Everything that the model reads: first its main input, then what goes with it."""
        e = self.embedding
        if e.patches is not None:
            specs = pixel_inputs(e.patches.channels, *e.patches.image_size)
        else:
            types = e.type_vocab_size or (e.vocab_size if e.token_types_from_words else 0)
            specs = token_inputs(e.vocab_size, _num_positions(e), types, exports_types=e.type_vocab_size > 0)
        if self.decoder is None:
            return specs
        return specs + target_inputs(self.decoder.embedding.vocab_size, _num_positions(self.decoder.embedding))

    @property
    def num_all_layer_weights(self) -> int:
        """Number of distinct sets of layer weights in all stacks."""
        return self.num_layer_weights + (0 if self.decoder is None else self.decoder.num_layer_weights)

    def as_decoder(self) -> "TransformerConfig":
        """Return an encoder-decoder's decoder as a configuration of its own; for any other model, return the model's."""
        decoder = self.decoder
        if decoder is None:
            return self
        return replace(
            self, stack="decoder", causal=True, decoder=None, layers=decoder.layers, embedding=decoder.embedding
        )

    def replace(self, **changes: Any) -> "TransformerConfig":
        """Return a copy with fields changed; ``part__field=value`` reaches into a part: ``norm__epsilon=1e-5``.

        ``attention``, ``feed_forward``, ``attention__dropout`` etc. change every layer.

        Raises:
            ConfigError: A field or part does not exist.
        """
        nested: dict[str, dict[str, Any]] = {}
        for key in [key for key in changes if "__" in key]:
            part, name = key.split("__", 1)
            nested.setdefault(part, {})[name] = changes.pop(key)
        of_layers = {name: changes.pop(name) for name in LAYER_PARTS if name in changes}
        layers = changes.pop("layers", self.layers)
        if of_layers:
            layers = layers.map(lambda layer: replace(layer, **of_layers))
        for part, values in nested.items():
            if part in LAYER_PARTS and getattr(self, part) is not None:
                layers = layers.map(
                    lambda layer, part=part, values=values: replace(
                        layer, **{part: _replace(getattr(layer, part), values)}
                    )
                )
                continue
            current = getattr(self, part, None)
            if not is_dataclass(current):
                raise ConfigError(f"config has no part {part!r}; parts are {', '.join((*_parts(self), *LAYER_PARTS))}")
            changes[part] = _replace(current, values)
        return _replace(self, changes | {"layers": layers})

    def without_dropout(self) -> "TransformerConfig":
        """Return a copy in which every dropout rate is 0."""

        def clear(part: Any) -> Any:
            if isinstance(part, tuple):
                return tuple(map(clear, part))
            if not is_dataclass(part):
                return part
            names = [f.name for f in fields(part)]
            return replace(part, **{n: 0.0 if "dropout" in n else clear(getattr(part, n)) for n in names})

        return clear(self)


LAYER_PARTS = ("attention", "cross_attention", "feed_forward")
"""Parts of a configuration that belong to its layers."""

UNLIMITED = 2**30
"""The max_length of a model whose positions set no bound."""


def _num_positions(embedding: EmbeddingConfig) -> int | None:
    return None if embedding.positions == "none" else embedding.max_positions


def _max_length(embedding: EmbeddingConfig) -> int:
    return UNLIMITED if embedding.positions == "none" else embedding.max_positions - embedding.position_offset


PROBLEM_TYPES = ("regression", "single_label_classification", "multi_label_classification")

Config = TypeVar("Config")


def _parts(config: Any) -> list[str]:
    return [f.name for f in fields(config) if is_dataclass(getattr(config, f.name))]


def _replace(config: Config, changes: dict[str, Any]) -> Config:
    allowed = {f.name for f in fields(cast(Any, config))}
    for name in changes:
        if name not in allowed:
            raise ConfigError(f"{type(config).__name__} has no field {name!r}; fields are {', '.join(sorted(allowed))}")
    return replace(cast(Any, config), **changes)
