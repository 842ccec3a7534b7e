"""What a transformer is, as data.

Families differ in these fields and in nothing else: both engines read them, and neither ever asks for a model's
name. Translating a Hugging Face ``config.json`` into these classes and back is the work of ``shared/duonlp/architectures``.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, fields, is_dataclass, replace
from typing import Any

from duonlp.errors import ConfigError

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
    """The canonical name of a Transformers activation; raises ConfigError for one that no engine implements."""
    name = ACTIVATION_ALIASES.get(name, name)
    if name not in ACTIVATIONS:
        raise ConfigError(f"activation {name!r} is not supported; choose one of {', '.join(ACTIVATIONS)}")
    return name


POSITIONS = ("learned", "sinusoidal", "tensor2tensor", "none")
"""Where position vectors come from: a table that is trained; sines and cosines, in two halves, of Vaswani et al. 2017 or as
tensor2tensor has them (duonlp.positions.fixed_table); or nowhere, where attention tells positions itself (T5)."""


@dataclass(frozen=True)
class EmbeddingConfig:
    """Token ids to vectors: words + positions + token types, then a norm, dropout and a projection."""

    vocab_size: int
    size: int  # width of the tables; `projection` widens it to hidden_size
    max_positions: int  # rows of the position table
    positions: str = "learned"  # one of POSITIONS
    position_offset: int = 0  # id of the first position (RoBERTa starts after its padding id)
    positions_skip_padding: bool = False  # padding gets position `padding_id` and is not counted
    sinusoidal_init: bool = False  # a fresh position table starts as sines and cosines (DistilBERT)
    type_vocab_size: int = 0  # rows of the token type table; 0: no such table
    token_types_from_words: bool = False  # token type ids are looked up in the word table (GPT-2)
    padding_id: int | None = None  # its rows receive no gradient from the lookup, as torch's padding_idx
    scale: bool = False  # word vectors are multiplied by sqrt(size)
    norm: bool = True
    projection: bool = False
    dropout: float = 0.0


@dataclass(frozen=True)
class AttentionConfig:
    """Multi-head dot-product attention."""

    num_heads: int
    head_dim: int
    bias: bool = True
    dropout: float = 0.0  # on the probabilities
    scale_by_head_dim: bool = True  # scores / sqrt(head_dim)
    scale_by_layer: bool = False  # scores / (layer index + 1), GPT-2's scale_attn_by_inverse_layer_idx
    float32_scores: bool = False  # the product of queries and keys in float32, GPT-2's reorder_and_upcast_attn
    relative_buckets: int = (
        0  # distances share so many biases of the scores, one a head, alike in all layers (T5); 0: none
    )
    relative_max_distance: int = 128  # what is farther is in the last bucket


@dataclass(frozen=True)
class FeedForwardConfig:
    """hidden -> size -> hidden, applied at each position."""

    size: int
    activation: str = "gelu"
    bias: bool = True
    gated: bool = False  # activation(x @ gate) * (x @ up), then down
    dropout: float = 0.0  # before the second layer


@dataclass(frozen=True)
class NormConfig:
    """Norms: where they stand and their epsilon."""

    epsilon: float = 1e-12
    rms: bool = False  # divides by the root mean square, without mean and bias (Zhang and Sennrich 2019)
    position: str = "post"  # "post": after the residual sum (BERT); "pre": before each block (GPT-2)
    final: bool = False  # one more after the last layer
    final_dropout: float = 0.0  # after that


@dataclass(frozen=True)
class LMHeadConfig:
    """Hidden states to vocabulary logits."""

    transform: bool = False  # dense + activation + norm before the output (BERT)
    activation: str = "gelu"
    bias: bool = False
    fixed_bias: bool = False  # which is not trained (BART's final_logits_bias)
    tied: bool = True  # the output is the word table transposed
    scale: bool = False  # hidden states are divided by sqrt(hidden_size) first


@dataclass(frozen=True)
class PoolingConfig:
    """One vector for a sequence: pick a token (or the mean), dropout, dense, activation, dropout."""

    token: str = "first"  # "first", "last", "mean", "last_non_padding", or "last_eos"
    dense: bool = True
    activation: str = "tanh"
    dropout_before: float = 0.0
    dropout: float = 0.0
    classifier_bias: bool = True


@dataclass(frozen=True)
class DecoderConfig:
    """The second stack of an encoder-decoder: what it has of its own. Norms, dropout and width are the encoder's."""

    layer_order: tuple[int, ...]
    embedding: EmbeddingConfig
    attention: AttentionConfig
    cross_attention: AttentionConfig
    feed_forward: FeedForwardConfig
    shares_words: bool = True  # one table of word vectors for both
    start_token_id: int | None = None  # what every target begins with
    starts_with_last: bool = False  # it begins with its own last token instead, the language (mBART)
    reads_source: bool = False  # without decoder inputs it gets the encoder's, shifted (BART)

    @property
    def max_length(self) -> int:
        """The longest target the positions allow."""
        return _max_length(self.embedding)


@dataclass(frozen=True)
class TransformerConfig:
    """A whole model. Immutable and hashable; change it with :meth:`replace`.

    ``extra`` keeps the keys of config.json that change no arithmetic, so that saving writes them back.
    """

    model_type: str
    hidden_size: int
    layer_order: tuple[int, ...]  # which set of layer weights each step applies; (0, 0, 0): one set, thrice (ALBERT)
    embedding: EmbeddingConfig
    attention: AttentionConfig
    feed_forward: FeedForwardConfig
    norm: NormConfig
    lm_head: LMHeadConfig
    pooler: PoolingConfig | None  # the base model's `pooler_output`
    classification: PoolingConfig
    multiple_choice: PoolingConfig
    sentence_head: str = "next_sentence"  # what pretraining predicts of a sentence pair; "sentence_order" in ALBERT
    stack: str = "encoder"  # the name of the stack of layers in the parameter tree
    decoder: DecoderConfig | None = None  # the second stack, of an encoder-decoder
    cross_attention: AttentionConfig | None = None  # set in what as_decoder() gives, and there alone
    causal: bool = False  # a token attends to those before it only
    hidden_dropout: float = 0.0
    token_dropout: float = 0.0  # before the token classification layer
    qa_dropout: float = 0.0
    initializer_range: float = 0.02
    scaled_residual_init: bool = False  # residual outputs start at range / sqrt(2 * layers) (GPT-2)
    fan_in_init: bool = (
        False  # kernels start at range / sqrt(inputs), queries at that / sqrt(head_dim), tables at range (T5)
    )
    labels: tuple[str, ...] = ("LABEL_0", "LABEL_1")
    problem_type: str | None = None
    pad_token_id: int | None = None
    bos_token_id: int | None = None
    eos_token_id: int | tuple[int, ...] | None = None
    extra: Mapping[str, Any] = field(default_factory=dict, compare=False, hash=False, repr=False)

    def __post_init__(self):
        if self.problem_type not in (None, *PROBLEM_TYPES):
            raise ConfigError(f"problem_type {self.problem_type!r} is none of {', '.join(PROBLEM_TYPES)}")

    @property
    def num_layers(self) -> int:
        """How many layers an input passes."""
        return len(self.layer_order)

    @property
    def num_layer_weights(self) -> int:
        """How many sets of layer weights there are; fewer than layers where layers share them."""
        return max(self.layer_order, default=-1) + 1

    @property
    def num_labels(self) -> int:
        """Number of classes."""
        return len(self.labels)

    @property
    def id2label(self) -> dict[int, str]:
        """Class id to its name."""
        return dict(enumerate(self.labels))

    @property
    def label2id(self) -> dict[str, int]:
        """Class name to its id."""
        return {label: i for i, label in enumerate(self.labels)}

    @property
    def max_length(self) -> int:
        """The longest sequence the positions allow, special tokens included; UNLIMITED where they set no bound."""
        return _max_length(self.embedding)

    def as_decoder(self) -> "TransformerConfig":
        """The decoder of an encoder-decoder as a configuration of its own; of any other model, the model's."""
        d = self.decoder
        if d is None:
            return self
        own = {
            name: getattr(d, name)
            for name in ("layer_order", "embedding", "attention", "cross_attention", "feed_forward")
        }
        return replace(self, stack="decoder", causal=True, decoder=None, **own)

    def replace(self, **changes) -> "TransformerConfig":
        """A copy with fields changed; ``part__field=value`` reaches into a part: ``attention__dropout=0.0``.

        Raises:
            ConfigError: for a field that does not exist.
        """
        nested: dict[str, dict] = {}
        for key in [key for key in changes if "__" in key]:
            part, name = key.split("__", 1)
            nested.setdefault(part, {})[name] = changes.pop(key)
        for part, values in nested.items():
            current = getattr(self, part, None)
            if not is_dataclass(current):
                raise ConfigError(f"config has no part {part!r}; parts are {', '.join(_parts(self))}")
            changes[part] = _replace(current, values)
        return _replace(self, changes)

    def without_dropout(self) -> "TransformerConfig":
        """A copy in which every dropout rate is 0."""

        def clear(part):
            changes = {f.name: 0.0 for f in fields(part) if "dropout" in f.name}
            changes |= {n: clear(getattr(part, n)) for n in _parts(part)}
            return replace(part, **changes)

        return clear(self)


UNLIMITED = 2**30
"""The max_length of a model whose positions have no end."""


def _max_length(embedding: EmbeddingConfig) -> int:
    return UNLIMITED if embedding.positions == "none" else embedding.max_positions - embedding.position_offset


PROBLEM_TYPES = ("regression", "single_label_classification", "multi_label_classification")


def _parts(config) -> list[str]:
    return [f.name for f in fields(config) if is_dataclass(getattr(config, f.name))]


def _replace(config, changes: dict):
    allowed = {f.name for f in fields(config)}
    for name in changes:
        if name not in allowed:
            raise ConfigError(f"{type(config).__name__} has no field {name!r}; fields are {', '.join(sorted(allowed))}")
    return replace(config, **changes)
