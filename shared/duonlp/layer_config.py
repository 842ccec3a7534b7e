"""The layers of a stack described as data: norms, rotary positions, attention, feed-forward, and how layers repeat.

They are exported by :mod:`duonlp.config`.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from duonlp.errors import ConfigError
from duonlp.schema import MOST_LAYERS, shorten

PLACEMENTS = ("pre", "post", "both", "none")
"""Places of a layer's norms: before each block (GPT-2), after each residual sum (BERT), before each block and on its output
(Gemma 2), or nowhere."""

SCALINGS = ("linear", "dynamic", "yarn", "llama3", "longrope")
"""Kinds of rotary scaling, by their Transformers names."""


@dataclass(frozen=True)
class NormConfig:
    """Kind, placement and epsilon of the norms."""

    epsilon: float = 1e-12
    rms: bool = False  # RMSNorm: no mean, no bias (Zhang and Sennrich 2019)
    bias: bool = True  # of a LayerNorm
    unit_offset: bool = False  # an RMSNorm multiplies by 1 + scale, and the scale starts at 0 (Gemma)
    position: str = "post"  # one of PLACEMENTS
    final: bool = False  # one more norm after the last layer
    final_dropout: float = 0.0  # after the final norm
    final_in_hidden_states: bool = True  # the last of all hidden states is normed, too

    def __post_init__(self):
        if self.position not in PLACEMENTS:
            raise ConfigError(f"norm position {self.position!r} is unknown; use one of {', '.join(PLACEMENTS)}")
        if self.unit_offset and not self.rms:
            raise ConfigError("unit_offset=True needs rms=True; a LayerNorm has no unit offset")


@dataclass(frozen=True)
class RotaryScaling:
    """How rotary frequencies change for contexts longer than those of pretraining; fields as in Transformers' rope_parameters.

    None leaves a field to the default of its kind.
    """

    kind: str  # one of SCALINGS
    factor: float = 1.0
    original_max_positions: int | None = None
    attention_factor: float | None = None
    beta_fast: float | None = None
    beta_slow: float | None = None
    mscale: float | None = None
    mscale_all_dim: float | None = None
    truncate: bool = True
    short_factor: tuple[float, ...] | None = None
    long_factor: tuple[float, ...] | None = None
    low_freq_factor: float | None = None
    high_freq_factor: float | None = None

    def __post_init__(self):
        if self.kind not in SCALINGS:
            raise ConfigError(f"rotary scaling {self.kind!r} is unknown; use one of {', '.join(SCALINGS)}")


@dataclass(frozen=True)
class RotaryConfig:
    """Rotary position embedding of queries and keys (Su et al. 2021, https://arxiv.org/abs/2104.09864)."""

    size: int  # rotated dimensions of each head; the others are left alone
    base: float = 10_000.0
    scaling: RotaryScaling | None = None
    interleaved: bool = False  # rotate neighbors (0, 1), (2, 3), ... (GPT-J) instead of the two halves (GPT-NeoX)
    max_positions: int | None = None  # of the model, which some scalings depend on

    def __post_init__(self):
        if self.size < 2 or self.size % 2:
            raise ConfigError(f"{self.size} rotary dimensions cannot be rotated in pairs; use an even number from 2")
        if not self.base > 0:
            raise ConfigError(f"the rotary base is {self.base}; use a positive number")


@dataclass(frozen=True)
class AttentionConfig:
    """Multi-head dot-product attention."""

    num_heads: int
    head_dim: int
    bias: bool = True  # of the four projections; the next four fields override it
    query_bias: bool | None = None
    key_bias: bool | None = None
    value_bias: bool | None = None
    output_bias: bool | None = None
    num_kv_heads: int | None = None  # heads of keys and values, each shared by as many queries; None: num_heads
    dropout: float = 0.0  # on the attention probabilities
    output_dropout: float = 0.0  # on the output, besides the model's hidden_dropout (ModernBERT)
    scale_by_head_dim: bool = True  # divide scores by sqrt(head_dim)
    scale_by_layer: bool = False  # divide scores by (layer index + 1): GPT-2's scale_attn_by_inverse_layer_idx
    float32_scores: bool = False  # multiply queries and keys in float32: GPT-2's reorder_and_upcast_attn
    qk_norm: NormConfig | None = None  # norm of queries and keys, before they are rotated
    qk_norm_over_heads: bool = False  # it spans all heads (OLMo 2) instead of each head alone (Qwen 3, Gemma 3)
    softcap: float | None = None  # scores become softcap * tanh(scores / softcap) (Gemma 2)
    window: int | None = None  # attend to keys less than this far away: backward if causal, else both ways
    rotary: RotaryConfig | None = None
    relative_buckets: int = 0  # distance buckets of the score bias, shared by all layers (T5); 0: no relative bias
    relative_max_distance: int = 128  # distances from here on share the last bucket

    def __post_init__(self):
        if self.num_heads < 1 or self.head_dim < 1:
            raise ConfigError(f"attention has {self.num_heads} heads of width {self.head_dim}; use positive numbers")
        if self.kv_heads < 1 or self.num_heads % self.kv_heads:
            raise ConfigError(
                f"{self.num_heads} attention heads cannot share {self.kv_heads} key-value heads evenly; use a number that "
                f"divides {self.num_heads}"
            )
        if self.window is not None and self.window < 1:
            raise ConfigError(f"the attention window is {self.window}; use at least 1 (only the token itself), or None")
        if self.softcap is not None and not self.softcap > 0:
            raise ConfigError(f"the softcap of attention scores is {self.softcap}; use a positive number, or None")
        if self.rotary is not None and self.rotary.size > self.head_dim:
            raise ConfigError(f"{self.rotary.size} rotary dimensions do not fit into heads of width {self.head_dim}")

    @property
    def kv_heads(self) -> int:
        """Number of key-value heads."""
        return self.num_heads if self.num_kv_heads is None else self.num_kv_heads

    @property
    def size(self) -> int:
        """Width of the queries of all heads, and of the input of the output projection."""
        return self.num_heads * self.head_dim

    @property
    def kv_size(self) -> int:
        """Width of the keys, and of the values, of all heads."""
        return self.kv_heads * self.head_dim

    def has_bias(self, name: str) -> bool:
        """Return whether a projection ("query", "key", "value" or "output") has a bias."""
        own = getattr(self, f"{name}_bias")
        return self.bias if own is None else own


@dataclass(frozen=True)
class FeedForwardConfig:
    """Position-wise feed-forward layer: hidden -> size -> hidden."""

    size: int
    activation: str = "gelu"
    bias: bool = True
    gated: bool = False  # activation(x @ gate) * (x @ up), then down
    dropout: float = 0.0  # before the down projection
    # In float16, keep the down projection's parameters, its product and the sums that it is added to in float32, like
    # Transformers' T5, whose states exceed 65504.
    float32_output: bool = False


@dataclass(frozen=True)
class LayerConfig:
    """One transformer layer: attention, cross-attention in a decoder with an encoder, and feed-forward."""

    attention: AttentionConfig
    feed_forward: FeedForwardConfig
    cross_attention: AttentionConfig | None = None
    norm: NormConfig | None = None  # kind and placement of the layer's norms; None: the model's
    attention_norm: bool = True  # False leaves out attention's norm (ModernBERT's first layer)
    feed_forward_norm: bool = True  # False leaves out the feed-forward block's
    # Both blocks read the layer's input, and the layer adds their sum to it. Without a norm of its own, the feed-forward
    # block reads attention's normed input (GPT-J, Phi).
    parallel: bool = False
    # Blocks ("attention", ...) whose outputs, and the sums with them, are clamped to FLOAT16_BOUND in float16.
    clamped: tuple[str, ...] = ()

    def __post_init__(self):
        if self.parallel and self.cross_attention is not None:
            raise ConfigError("a layer with parallel=True has no cross-attention; leave out one of them")


@dataclass(frozen=True)
class LayerPattern:
    """The layers of a stack: a prefix, then a period that repeats until the depth is reached.

    ``pattern[i]`` is the LayerConfig of step i; :meth:`of` finds the shortest pattern of a list of layers.
    """

    prefix: tuple[LayerConfig, ...]
    period: tuple[LayerConfig, ...]
    depth: int  # number of layers an input passes through
    order: tuple[int, ...] | None = None  # weights used at each depth; None: each layer has its own

    def __post_init__(self):
        length = len(self.prefix) + len(self.period)
        if not self.period or not 1 <= self.depth <= MOST_LAYERS:
            raise ConfigError(
                f"a stack has {self.depth} layers and a period of {len(self.period)}; both must be at least 1, and the layers "
                f"at most {MOST_LAYERS:,}"
            )
        if length > self.depth:
            raise ConfigError(
                f"the layer pattern has {length} layers ({len(self.prefix)} of the prefix and {len(self.period)} of the "
                f"period), more than the depth, {self.depth}; shorten it or use more layers"
            )
        if self.order is not None and (
            len(self.order) != self.depth or sorted(set(self.order)) != list(range(max(self.order) + 1))
        ):
            raise ConfigError(
                f"layer_order is {shorten(list(self.order))}; it needs one number for each of the {self.depth} layers, counted "
                "from 0 without gaps"
            )
        if not self.shared:
            object.__setattr__(self, "order", None)  # so that equal patterns compare equal
        elif length > 1:
            raise ConfigError(f"layers that share weights must all be alike; this pattern has {length} layers")

    @classmethod
    def uniform(cls, layer: LayerConfig, depth: int, order: tuple[int, ...] | None = None) -> "LayerPattern":
        """Return the pattern of layers that are all alike."""
        return cls((), (layer,), depth, order)

    @classmethod
    def of(cls, layers: Sequence[LayerConfig]) -> "LayerPattern":
        """Return the shortest pattern that describes a list of layers, one per step.

        Raises:
            ConfigError: The list is empty.
        """
        if not layers:
            raise ConfigError("a stack needs at least one layer")
        depth, kinds = len(layers), {layer: i for i, layer in enumerate(layers)}
        ids = np.array([kinds[layer] for layer in layers])  # cheaper to compare

        def prefix(period: int) -> int:
            """Return the number of layers after which all others repeat with a period."""
            different = np.flatnonzero(ids[period:] != ids[: depth - period])
            return int(different[-1]) + 1 if different.size else 0

        start, period = min(
            ((prefix(period), period) for period in range(1, depth + 1)), key=lambda pair: (sum(pair), pair[0])
        )
        return cls(tuple(layers[:start]), tuple(layers[start : start + period]), depth)

    def __len__(self) -> int:
        return self.depth

    def __getitem__(self, step: int) -> LayerConfig:
        if not -self.depth <= step < self.depth:
            raise IndexError(f"layer {step} of {self.depth}")
        step %= self.depth
        start = len(self.prefix)
        return self.prefix[step] if step < start else self.period[(step - start) % len(self.period)]

    def __iter__(self) -> Iterator[LayerConfig]:
        return (self[step] for step in range(self.depth))

    @property
    def layer_order(self) -> tuple[int, ...]:
        """Index of the weights that each step uses."""
        return tuple(range(self.depth)) if self.order is None else self.order

    @property
    def shared(self) -> bool:
        """Whether any steps share weights, or use them out of order."""
        return self.layer_order != tuple(range(self.depth))

    @property
    def weights(self) -> tuple[LayerConfig, ...]:
        """Configuration of each set of layer weights; fewer than the steps where layers share weights."""
        if self.order is None:
            return tuple(self)
        return tuple(self[self.order.index(i)] for i in range(max(self.order) + 1))

    @property
    def windows(self) -> tuple[int | None, ...]:
        """The distinct attention windows, in order of appearance; None is unlimited attention."""
        return tuple(dict.fromkeys(layer.attention.window for layer in self))

    @property
    def rotaries(self) -> tuple[RotaryConfig, ...]:
        """The distinct rotary position embeddings, in order of appearance."""
        return tuple(dict.fromkeys(c.rotary for c in (layer.attention for layer in self) if c.rotary is not None))

    @property
    def float32_sums(self) -> bool:
        """Whether the states between the layers are float32 where the model computes in float16."""
        return any(layer.feed_forward.float32_output for layer in self)

    def map(self, change: Callable[[LayerConfig], LayerConfig]) -> "LayerPattern":
        """Return the pattern with a function applied to every layer."""
        return replace(self, prefix=tuple(map(change, self.prefix)), period=tuple(map(change, self.period)))

    def select(self, steps: Sequence[int]) -> "LayerPattern":
        """Return the pattern of some of the steps, in the given order; layers that share weights keep sharing them."""
        order = tuple(self.layer_order[step] for step in steps)
        used = list(dict.fromkeys(order))
        renumbered = tuple(used.index(i) for i in order)
        pattern = LayerPattern.of([self[step] for step in steps])
        return pattern if renumbered == tuple(range(len(steps))) else replace(pattern, order=renumbered)


QUANTIZED_LEAVES = "kernel", "embedding"
"""Parameters that can be quantized, by the last component of their path."""

QUANTIZED_BITS = 8, 4
"""Widths of quantized weights."""

ACTIVATIONS_OF_QUANTIZED = "float", "dynamic", "static"
"""How a quantized layer treats its inputs: as they are, quantized with a scale per row, or with one calibrated scale."""


@dataclass(frozen=True)
class LayerQuantization:
    """How one layer's kernel, or the rows of one table, are stored and multiplied.

    Weights are symmetric signed integers times float32 scales. A kernel [in, out] has one scale per output or, with groups, one
    per output and group of consecutive inputs; a table [rows, width] has one per row.
    """

    bits: int = 8  # one of QUANTIZED_BITS; two values of 4 bits share a byte
    group_size: int | None = None  # inputs that share a scale; None: all
    activations: str = "float"  # one of ACTIVATIONS_OF_QUANTIZED
    channel_scaled: bool = False  # inputs are first divided by a fixed factor per channel (AWQ)
    input_scale: float | None = None  # of static activations in quantization-aware training; later it is a parameter

    def __post_init__(self):
        if self.bits not in QUANTIZED_BITS:
            raise ConfigError(f"bits is {self.bits!r}; quantized weights have 8 or 4 bits")
        if self.activations not in ACTIVATIONS_OF_QUANTIZED:
            allowed = ", ".join(ACTIVATIONS_OF_QUANTIZED)
            raise ConfigError(f"activations {self.activations!r} are unknown; use one of {allowed}")
        if self.group_size is not None and self.group_size < 1:
            raise ConfigError(f"group_size is {self.group_size}; it must be a positive number of inputs, or None")
        if self.activations != "float" and (self.bits, self.group_size) != (8, None):
            raise ConfigError("quantized activations need weights of 8 bits with one scale per output")
        scale = self.input_scale
        if scale is not None and (self.activations != "static" or not 0 < scale < float("inf")):
            raise ConfigError(f"input_scale is {scale!r}; it must be a positive number, and activations 'static'")


@dataclass(frozen=True)
class QuantizationConfig:
    """Which layers of a model are quantized, and how.

    Attributes:
        layers: (path, LayerQuantization) of each quantized layer or table. A path is that of the layer in the parameter tree,
            such as ``encoder/layer_0/attention/query``; those that a head lacks have no effect.
        simulated: Whether parameters stay in floating point and are rounded in each forward pass, for quantization-aware
            training (Jacob et al. 2018, https://arxiv.org/abs/1712.05877).
    """

    layers: tuple[tuple[str, LayerQuantization], ...]
    simulated: bool = False

    def __post_init__(self):
        object.__setattr__(self, "layers", tuple(sorted(self.layers, key=lambda layer: layer[0])))

    def of(self, path: str) -> LayerQuantization | None:
        """Return how the layer at a path is quantized; None if it is not."""
        return self._by_path.get(path)

    @cached_property
    def multiplies_integers(self) -> bool:
        """Whether a layer multiplies integers with integers."""
        return not self.simulated and any(layer.activations != "float" for _, layer in self.layers)

    @cached_property
    def _by_path(self) -> dict[str, LayerQuantization]:
        return dict(self.layers)
