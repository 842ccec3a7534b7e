"""Kinds of layers that no family of the registry has yet, as small models of Transformers: cases for both engines.

Between them they have grouped queries, interleaved and partial rotary positions, two rotary bases, windows, norms of queries and
keys, soft-capped scores, norms on both sides of a block or only on its output, parallel blocks with one norm or two, biases of
some projections, and fused weights that are interleaved by head.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from duonlp.architectures._common import Weight, embedding, fused_linear, linear, norm
from duonlp.config import (
    AttentionConfig,
    EmbeddingConfig,
    FeedForwardConfig,
    LayerConfig,
    LayerPattern,
    LMHeadConfig,
    NormConfig,
    PoolingConfig,
    RotaryConfig,
    TransformerConfig,
)  # fmt: skip
from duonlp.distillation.students import CopiedSource
from duonlp.parameters import parameters
from tests.cases import VOCABULARY, _value

WIDTH, HEADS, KV_HEADS, SIZE, WINDOW, LENGTH = 24, 4, 2, 40, 3, 9
LAYER_TYPES = ["sliding_attention", "full_attention"] * 2
TENSORS = {"query": "q_proj", "key": "k_proj", "value": "v_proj", "output": "o_proj"}


@dataclass(frozen=True)
class Kind:
    """A model to compare.

    Attributes:
        model: Name of the Transformers class.
        options: Options of its configuration.
        config: The same model as a TransformerConfig.
        rows: Function from the number and path of a layer to the rows of its weights.
        outer: Names of the word embeddings and of the final norm.
    """

    model: str
    options: dict
    config: TransformerConfig
    rows: Callable[[int, str], list[Weight]]
    outer: tuple[str, str]

    @property
    def weights(self) -> list[Weight]:
        """The weight table."""
        table, final = self.outer
        rows = embedding(table, "embeddings/word_embeddings") + norm(
            final, "decoder/final_norm", not self.config.norm.rms
        )
        return rows + [row for i in range(self.config.num_layers) for row in self.rows(i, f"decoder/layer_{i}")]

    @property
    def values(self) -> dict[str, np.ndarray]:
        """Random values of the parameters, by path."""
        return {path: _value(3, path, parameter) for path, parameter in parameters(self.config).items()}

    @property
    def plan(self) -> list[CopiedSource]:
        """Where an engine's model reads them."""
        values = self.values
        tree = parameters(self.config)
        return [CopiedSource(path, tree[path], lambda path=path: values[path]) for path in tree]

    def tensors(self) -> dict[str, np.ndarray]:
        """Return the values as tensors of the Transformers model, by name."""
        groups, values = {}, self.values
        for row in self.weights:
            groups.setdefault(row.name, []).append(row)
        out = {}
        for name, rows in groups.items():
            part = rows[0].part
            whole = values[rows[0].path] if part is None else part.join([values[row.path] for row in rows])
            out[name] = np.ascontiguousarray(whole.T if rows[0].layout == "linear" else whole)
        return out


def inputs() -> dict[str, np.ndarray]:
    """Return ids int32 [2, 9] and their mask; the second row has padding on the right."""
    ids = np.random.default_rng(5).integers(5, 55, (2, LENGTH))
    mask = np.arange(LENGTH) < np.array([LENGTH, LENGTH - 3])[:, None]
    return {"input_ids": np.where(mask, ids, 0).astype(np.int32), "attention_mask": mask.astype(np.int32)}


def cotangent() -> np.ndarray:
    """Return the gradient of the loss with respect to the last hidden states, float32 [2, 9, D]."""
    return np.random.default_rng(6).standard_normal((2, LENGTH, WIDTH), np.float32)


def _config(
    layers: list[LayerConfig], norm_config: NormConfig, scale: bool = False, padding_id: int | None = 0
) -> TransformerConfig:
    words = EmbeddingConfig(VOCABULARY, WIDTH, 20, positions="rotary", padding_id=padding_id, scale=scale, norm=False)
    return TransformerConfig(
        model_type="gpt2", hidden_size=WIDTH, layers=LayerPattern.of(layers), embedding=words, norm=norm_config,
        lm_head=LMHeadConfig(), pooler=None, classification=PoolingConfig(), multiple_choice=PoolingConfig(),
        stack="decoder", causal=True,
    )  # fmt: skip


def _modern(norms: dict[str, str], qk_norm: bool = False, bias: bool = False) -> Callable[[int, str], list[Weight]]:
    """Return the rows of the layers of Llama's relatives: RMS norms by name, and a gated block."""

    def rows(i: int, ours: str) -> list[Weight]:
        theirs, result = f"layers.{i}", []
        for part, name in TENSORS.items():
            result += linear(f"{theirs}.self_attn.{name}", f"{ours}/attention/{part}", bias and part != "output")
        for part in ("query", "key") if qk_norm else ():
            result += norm(f"{theirs}.self_attn.{part[0]}_norm", f"{ours}/attention/{part}_norm", bias=False)
        for part in ("gate", "up", "down"):
            result += linear(f"{theirs}.mlp.{part}_proj", f"{ours}/feed_forward/{part}", bias=False)
        return result + [
            row for name, path in norms.items() for row in norm(f"{theirs}.{name}", f"{ours}/{path}", bias=False)
        ]

    return rows


def _kinds() -> dict[str, Kind]:
    rotary = RotaryConfig(6, 100.0)
    sizes = {"vocab_size": VOCABULARY, "hidden_size": WIDTH, "num_attention_heads": HEADS, "max_position_embeddings": 20,
             "pad_token_id": 0, "rope_parameters": {"rope_type": "default", "rope_theta": 100.0}}  # fmt: skip
    modern = sizes | {"num_key_value_heads": KV_HEADS, "intermediate_size": SIZE, "num_hidden_layers": 4}
    gated = FeedForwardConfig(SIZE, "gelu_pytorch_tanh", bias=False, gated=True)
    grouped = AttentionConfig(HEADS, 6, bias=False, num_kv_heads=KV_HEADS, rotary=rotary)

    wide = AttentionConfig(HEADS, 8, bias=False, num_kv_heads=KV_HEADS, rotary=RotaryConfig(8, 100.0), softcap=2.0)
    local = AttentionConfig(
        HEADS, 8, bias=False, num_kv_heads=KV_HEADS, rotary=RotaryConfig(8, 100.0), softcap=2.0, window=WINDOW
    )
    gemma_norm = NormConfig(1e-6, rms=True, unit_offset=True, position="both", final=True)
    sandwich = {
        "input_layernorm": "attention_norm", "post_attention_layernorm": "attention_output_norm",
        "pre_feedforward_layernorm": "feed_forward_norm", "post_feedforward_layernorm": "feed_forward_output_norm",
    }  # fmt: skip
    gemma2 = Kind(
        "Gemma2Model",
        modern | {"head_dim": 8, "query_pre_attn_scalar": 8, "sliding_window": WINDOW, "layer_types": LAYER_TYPES,
                  "attn_logit_softcapping": 2.0, "rms_norm_eps": 1e-6},
        _config([LayerConfig(local, gated), LayerConfig(wide, gated)] * 2, gemma_norm, scale=True),
        _modern(sandwich), ("embed_tokens", "norm"),
    )  # fmt: skip

    head_norm = NormConfig(1e-6, rms=True, unit_offset=True)
    bases = {"sliding_attention": 10.0, "full_attention": 500.0}
    gemma3_attention = {
        kind: AttentionConfig(
            HEADS, 8, bias=False, num_kv_heads=1, qk_norm=head_norm, rotary=RotaryConfig(8, base),
            window=WINDOW if kind == "sliding_attention" else None,
        )
        for kind, base in bases.items()
    }  # fmt: skip
    types = ["sliding_attention", "sliding_attention", "full_attention", "sliding_attention"]
    gemma3 = Kind(
        "Gemma3TextModel",
        modern | {"head_dim": 8, "query_pre_attn_scalar": 8, "sliding_window": WINDOW, "layer_types": types,
                  "num_key_value_heads": 1, "rms_norm_eps": 1e-6,
                  "rope_parameters": {k: {"rope_type": "default", "rope_theta": b} for k, b in bases.items()}},
        _config([LayerConfig(gemma3_attention[kind], gated) for kind in types], gemma_norm, scale=True),
        _modern(sandwich, qk_norm=True), ("embed_tokens", "norm"),
    )  # fmt: skip

    silu = FeedForwardConfig(SIZE, "silu", bias=False, gated=True)
    olmo_attention = AttentionConfig(
        HEADS, 6, bias=False, num_kv_heads=KV_HEADS, rotary=rotary, qk_norm=NormConfig(1e-5, rms=True),
        qk_norm_over_heads=True,
    )  # fmt: skip
    olmo_layer = LayerConfig(olmo_attention, silu, attention_norm=False, feed_forward_norm=False)
    olmo2 = Kind(
        "Olmo2Model",
        modern | {"num_hidden_layers": 2, "rms_norm_eps": 1e-5},
        _config([olmo_layer] * 2, NormConfig(1e-5, rms=True, position="both", final=True)),
        _modern({"post_attention_layernorm": "attention_output_norm",
                 "post_feedforward_layernorm": "feed_forward_output_norm"}, qk_norm=True),
        ("embed_tokens", "norm"),
    )  # fmt: skip

    biased = AttentionConfig(HEADS, 6, output_bias=False, num_kv_heads=KV_HEADS, rotary=rotary)
    qwen2 = Kind(
        "Qwen2Model",
        modern | {"num_hidden_layers": 2, "rms_norm_eps": 1e-6},
        _config([LayerConfig(biased, silu)] * 2, NormConfig(1e-6, rms=True, position="pre", final=True)),
        _modern({"input_layernorm": "attention_norm", "post_attention_layernorm": "feed_forward_norm"}, bias=True),
        ("embed_tokens", "norm"),
    )  # fmt: skip
    return {"gemma2": gemma2, "gemma3": gemma3, "olmo2": olmo2, "qwen2": qwen2, **_parallel_kinds(sizes, grouped)}


def _parallel_kinds(sizes: dict, grouped: AttentionConfig) -> dict[str, Kind]:
    """Return the models whose blocks are parallel."""
    pre = NormConfig(1e-5, position="pre", final=True)
    partial = RotaryConfig(4, 100.0)
    rope = {"rope_parameters": {"rope_type": "default", "rope_theta": 100.0, "partial_rotary_factor": 4 / 6}}
    block = FeedForwardConfig(SIZE, "gelu_new")
    common = {"num_hidden_layers": 2, "layer_norm_eps": 1e-5}

    def blocks(theirs: str, ours: str, up: str, down: str, bias: bool = True) -> list[Weight]:
        return linear(f"{theirs}.{up}", f"{ours}/feed_forward/up", bias) + linear(
            f"{theirs}.{down}", f"{ours}/feed_forward/down", bias
        )

    def phi(i: int, ours: str) -> list[Weight]:
        theirs = f"layers.{i}"
        rows = norm(f"{theirs}.input_layernorm", f"{ours}/attention_norm") + blocks(theirs, ours, "mlp.fc1", "mlp.fc2")
        for part, name in (TENSORS | {"output": "dense"}).items():
            rows += linear(f"{theirs}.self_attn.{name}", f"{ours}/attention/{part}")
        return rows

    def gptj(i: int, ours: str) -> list[Weight]:
        theirs = f"h.{i}"
        rows = norm(f"{theirs}.ln_1", f"{ours}/attention_norm") + blocks(theirs, ours, "mlp.fc_in", "mlp.fc_out")
        for part, name in (TENSORS | {"output": "out_proj"}).items():
            rows += linear(f"{theirs}.attn.{name}", f"{ours}/attention/{part}", bias=False)
        return rows

    def fused(theirs: str, ours: str, attention: str, **options) -> list[Weight]:
        parts = [f"{ours}/attention/{part}" for part in ("query", "key", "value")]
        rows = fused_linear(f"{theirs}.{attention}.query_key_value", parts, **options)
        return rows + linear(f"{theirs}.{attention}.dense", f"{ours}/attention/output", options.get("bias", True))

    def neox(i: int, ours: str) -> list[Weight]:
        theirs = f"layers.{i}"
        rows = norm(f"{theirs}.input_layernorm", f"{ours}/attention_norm")
        rows += norm(f"{theirs}.post_attention_layernorm", f"{ours}/feed_forward_norm")
        rows += fused(theirs, ours, "attention", groups=HEADS)
        return rows + blocks(theirs, ours, "mlp.dense_h_to_4h", "mlp.dense_4h_to_h")

    def falcon(i: int, ours: str) -> list[Weight]:
        theirs = f"h.{i}"
        rows = norm(f"{theirs}.ln_attn", f"{ours}/attention_norm") + norm(
            f"{theirs}.ln_mlp", f"{ours}/feed_forward_norm"
        )
        rows += fused(theirs, ours, "self_attention", sizes=(HEADS // KV_HEADS, 1, 1), groups=KV_HEADS, bias=False)
        return rows + blocks(theirs, ours, "mlp.dense_h_to_4h", "mlp.dense_4h_to_h", bias=False)

    one_norm = {"feed_forward_norm": False, "parallel": True}
    neighbors = RotaryConfig(4, interleaved=True)
    layers = {
        "phi": LayerConfig(AttentionConfig(HEADS, 6, rotary=partial), block, **one_norm),
        "gptj": LayerConfig(AttentionConfig(HEADS, 6, bias=False, rotary=neighbors), block, **one_norm),
        "neox": LayerConfig(AttentionConfig(HEADS, 6, rotary=partial), FeedForwardConfig(SIZE), parallel=True),
        "falcon": LayerConfig(grouped, FeedForwardConfig(4 * WIDTH, bias=False), parallel=True),
    }
    # All but Phi send gradients to the padding id's row, too.
    configs = {
        name: _config([layer] * 2, pre, padding_id=0 if name == "phi" else None) for name, layer in layers.items()
    }
    gptj_options = {"vocab_size": VOCABULARY, "n_embd": WIDTH, "n_head": HEADS, "n_layer": 2, "n_inner": SIZE, "rotary_dim": 4,
                    "n_positions": 20, "pad_token_id": 0}  # fmt: skip
    return {
        "phi": Kind("PhiModel", sizes | common | rope | {"intermediate_size": SIZE}, configs["phi"], phi,
                    ("embed_tokens", "final_layernorm")),
        "gptj": Kind("GPTJModel", gptj_options, configs["gptj"], gptj, ("wte", "ln_f")),
        "neox": Kind("GPTNeoXModel", sizes | common | rope | {"intermediate_size": SIZE}, configs["neox"], neox,
                     ("embed_in", "final_layer_norm")),
        "falcon": Kind("FalconModel", sizes | {"num_hidden_layers": 2, "num_kv_heads": KV_HEADS, "alibi": False, "bias": False,
                                               "new_decoder_architecture": True, "layer_norm_epsilon": 1e-5},
                       configs["falcon"], falcon, ("word_embeddings", "ln_f")),
    }  # fmt: skip


KINDS = _kinds()
