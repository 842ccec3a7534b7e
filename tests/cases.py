"""Small random models of the real architectures: every (family, head), and every option that changes the computation.

The cases come from the registry: a new file in shared/duonlp/architectures is covered without further
changes.
"""

import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from duonlp import architectures
from duonlp.checkpoints.save import save_checkpoint
from duonlp.config import ACTIVATIONS
from duonlp.parameters import Parameter, parameters

VOCABULARY, LENGTH, BATCH, CHOICES, TARGET = 61, 9, 3, 2, 6

# Few shapes, since the frameworks compile each operation once per shape.
ENCODER = {
    "vocab_size": VOCABULARY, "hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 4,
    "intermediate_size": 40, "max_position_embeddings": 20,
}  # fmt: skip
SEQ2SEQ = {
    "vocab_size": VOCABULARY, "d_model": 24, "max_position_embeddings": 20, "encoder_layers": 2, "decoder_layers": 2,
    "encoder_attention_heads": 4, "decoder_attention_heads": 4, "encoder_ffn_dim": 40, "decoder_ffn_dim": 40,
}  # fmt: skip
SIZES = {
    "distilbert": {
        "vocab_size": VOCABULARY, "dim": 24, "n_layers": 2, "n_heads": 4, "hidden_dim": 40,
        "max_position_embeddings": 20,
    },
    "gpt2": {
        "vocab_size": VOCABULARY, "n_embd": 24, "n_layer": 2, "n_head": 4, "n_inner": 40, "n_positions": 20,
        "bos_token_id": 59, "eos_token_id": 60, "pad_token_id": 0,
    },
    "llama": ENCODER | {
        "num_key_value_heads": 2, "head_dim": 8, "bos_token_id": 59, "eos_token_id": 60, "pad_token_id": 0,
    },
    "t5": {
        "vocab_size": VOCABULARY, "d_model": 24, "d_kv": 8, "num_heads": 4, "d_ff": 40, "num_layers": 2,
        "decoder_start_token_id": 0, "relative_attention_num_buckets": 8, "relative_attention_max_distance": 6,
    },
    "bart": SEQ2SEQ,
    "mbart": SEQ2SEQ,
    "m2m_100": SEQ2SEQ,
    "pegasus": SEQ2SEQ,
    "marian": SEQ2SEQ | {"pad_token_id": 60, "decoder_start_token_id": 60},
    # One layer of its own, a period of three and a remainder of two; the sequence is longer than the local window.
    "modernbert": ENCODER | {
        "num_hidden_layers": 6, "local_attention": 4, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
    },
    "albert": ENCODER | {"embedding_size": 12},
    "electra": ENCODER | {"embedding_size": 12},
    "vit": {
        "hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 40, "image_size": 12,
        "patch_size": 4,
    },
}  # fmt: skip
LABELLED = ("sequence-classification", "image-classification", "token-classification")

ROTARY = [
    {"rope_type": "linear", "factor": 2.5, "rope_theta": 500.0},
    {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 5},
    {
        "rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 5, "beta_fast": 2.0, "beta_slow": 0.3,
        "mscale": 1.5, "mscale_all_dim": 0.7, "truncate": False,
    },
    {
        "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "rope_theta": 20.0,
        "original_max_position_embeddings": 40,
    },
    {
        "rope_type": "longrope", "short_factor": [1.0, 1.1, 1.2, 1.3], "long_factor": [1.0, 2.0, 3.0, 5.0],
        "original_max_position_embeddings": 20,
    },
]  # fmt: skip
"""Every kind of rotary scaling of heads of width 8 that does not depend on the length of the text."""

SINGLE, MULTI, REGRESSION = "single_label_classification", "multi_label_classification", "regression"
VARIANTS = {
    "bert": {
        "base": [{"hidden_act": a} for a in ACTIVATIONS if a != "gelu"]
        + [{"layer_norm_eps": 1e-3}, {"type_vocab_size": 1}, {"is_decoder": True}],
        "masked-lm": [{"tie_word_embeddings": False}, {"hidden_act": "relu"}],
        "causal-lm": [{"tie_word_embeddings": False}],
        "sequence-classification": [{"problem_type": MULTI}, {"problem_type": REGRESSION, "num_labels": 1}],
        "pretraining": [{"tie_word_embeddings": False}],
    },
    "roberta": {
        "masked-lm": [{"tie_word_embeddings": False}, {"hidden_act": "relu"}],
        "base": [{"pad_token_id": 3}],
        "sequence-classification": [{"hidden_act": "silu"}],
    },
    "distilbert": {
        "masked-lm": [{"tie_word_embeddings": False}, {"activation": "relu"}],
        "base": [{"sinusoidal_pos_embds": True}],
    },
    "albert": {
        "base": [
            {"num_hidden_groups": 2, "inner_group_num": 2, "num_hidden_layers": 3},
            {"num_hidden_groups": 1, "inner_group_num": 2, "num_hidden_layers": 1},
        ],
        "masked-lm": [{"tie_word_embeddings": False}, {"hidden_act": "relu"}],
    },
    "electra": {
        "base": [{"embedding_size": 24}],
        "masked-lm": [{"tie_word_embeddings": False}, {"embedding_size": 24, "hidden_act": "relu"}],
        "multiple-choice": [
            {"summary_type": "mean", "summary_activation": None},
            {"summary_type": "last", "summary_activation": "tanh"},
            {"summary_use_proj": False},
        ],
        "replaced-token-detection": [{"hidden_act": "relu"}],
    },
    "modernbert": {
        "base": [
            {"global_attn_every_n_layers": 2, "local_attention": 7, "global_rope_theta": 50.0, "local_rope_theta": 5.0},
            {
                "num_hidden_layers": 3,
                "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
                "rope_parameters": {
                    "full_attention": {"rope_type": "default", "rope_theta": 40.0},
                    "sliding_attention": {"rope_type": "default", "rope_theta": 4.0},
                },
            },
            {
                "norm_bias": True,
                "attention_bias": True,
                "mlp_bias": True,
                "hidden_activation": "relu",
                "norm_eps": 1e-3,
            },
        ],
        "masked-lm": [
            {"tie_word_embeddings": False, "norm_bias": True},
            {"decoder_bias": False, "classifier_bias": True, "classifier_activation": "relu"},
        ],
        "sequence-classification": [
            {"classifier_pooling": "mean", "classifier_bias": True},
            {"problem_type": MULTI, "norm_bias": True},
        ],
    },
    "gpt2": {
        "causal-lm": [
            {"scale_attn_weights": False},
            {"scale_attn_by_inverse_layer_idx": True},
            {"reorder_and_upcast_attn": True},
            {"tie_word_embeddings": False},
            {"n_inner": None, "activation_function": "relu"},
        ],
        "sequence-classification": [{"problem_type": MULTI}],
    },
    "llama": {
        "causal-lm": [
            {"tie_word_embeddings": True, "rms_norm_eps": 1e-3},
            {"attention_bias": True, "mlp_bias": True, "hidden_act": "gelu"},
            {"num_key_value_heads": None, "head_dim": None, "pad_token_id": None, "eos_token_id": [60, 3]},
            {"num_key_value_heads": 1, "rope_theta": 300.0},
            *({"rope_parameters": parameters} for parameters in ROTARY),
            # Beyond the positions of pretraining, 6 and 5
            {"rope_parameters": {"rope_type": "dynamic", "factor": 2.0}, "max_position_embeddings": 6},
            {"rope_scaling": ROTARY[-1], "rope_theta": 100.0, "original_max_position_embeddings": 5},
        ],
        "sequence-classification": [{"problem_type": MULTI}],
    },
    "dpr": {
        "base": [{"projection_dim": 16}, {"architectures": ["DPRContextEncoder"], "hidden_act": "relu"}],
    },
    "vit": {
        "base": [
            {"hidden_act": "quick_gelu", "qkv_bias": False, "pooler_act": "linear", "layer_norm_eps": 1e-3},
            {"image_size": [8, 12], "patch_size": [4, 2], "num_channels": 1},
        ],
        "image-classification": [{"problem_type": MULTI}, {"problem_type": REGRESSION, "num_labels": 1}],
    },
    "t5": {
        "base": [
            {"relative_attention_num_buckets": 32, "relative_attention_max_distance": 128, "num_decoder_layers": 1},
        ],
        "seq2seq-lm": [
            {"feed_forward_proj": "gated-gelu", "tie_word_embeddings": False},
            {"feed_forward_proj": "gated-silu", "layer_norm_epsilon": 1e-3},
        ],
    },
}


UNTIED, SCALED = {"tie_word_embeddings": False}, {"scale_embedding": True}
VARIANTS |= {
    "bart": {
        "base": [
            SCALED | {"activation_function": "relu"},
            {"encoder_layers": 1, "decoder_attention_heads": 2, "decoder_ffn_dim": 32, "pad_token_id": 0},
        ],
        "seq2seq-lm": [UNTIED],
        "sequence-classification": [{"problem_type": MULTI}, UNTIED],
    },
    "mbart": {"seq2seq-lm": [SCALED, UNTIED]},
    "m2m_100": {
        "base": [{"pad_token_id": 0, "d_model": 20, "scale_embedding": False}],
        "seq2seq-lm": [UNTIED],
    },
    "pegasus": {"seq2seq-lm": [SCALED, UNTIED]},
    "marian": {
        "base": [{"share_encoder_decoder_embeddings": False, "decoder_vocab_size": 70}],
        "seq2seq-lm": [
            SCALED | {"activation_function": "swish"},
            {"share_encoder_decoder_embeddings": False, "decoder_vocab_size": 70},
            UNTIED | {"share_encoder_decoder_embeddings": False, "decoder_vocab_size": 70},
            UNTIED,
        ],
    },
}


@dataclass(frozen=True)
class Case:
    """A model to test.

    Attributes:
        name: Family, head and options.
        hf: config.json as a dict.
        head: Name of the head.
    """

    name: str
    hf: dict
    head: str

    @property
    def config(self):
        """TransformerConfig of the model."""
        return architectures.config_from_hf(self.hf)

    @property
    def seed(self) -> int:
        """Seed of the random weights and inputs, different for each case."""
        return zlib.crc32(self.name.encode())

    def write(self, folder: Path, factor: Callable[[str], float] = lambda path: 1.0) -> Path:
        """Save the model with its random weights, each times a factor by its path, in Hugging Face layout."""
        cfg, spec = self.config, parameters(self.config, self.head)
        # Where attention does not divide scores by sqrt(head_dim) (T5), scale the queries down instead. Otherwise softmax
        # would be so steep that float32 probabilities are not accurate to five digits.
        query_scale = 1 if cfg.attention.scale_by_head_dim or cfg.decoder is None else cfg.attention.head_dim**-0.5

        def value(path):
            scale = query_scale if path.endswith("query/kernel") else 1
            return factor(path) * scale * _value(self.seed, path, spec[path])

        save_checkpoint(folder, cfg, self.head, value, np.float32)
        return folder

    def inputs(self) -> dict[str, np.ndarray]:
        """Return what ``config.inputs`` lists, ids padded on the right, and the labels of the head."""
        rng = np.random.default_rng(self.seed)
        cfg = self.config
        specs = {spec.name: spec for spec in cfg.inputs}
        if "pixel_values" in specs:
            pixels = rng.standard_normal((BATCH, *specs["pixel_values"].shape[1:]), np.float32)
            return {"pixel_values": pixels} | self._labels(rng, (), np.ones(())) | self._float_labels(rng)
        shape = (BATCH, CHOICES, LENGTH) if self.head == "multiple-choice" else (BATCH, LENGTH)
        ids = rng.integers(5, 55, shape)
        mask = np.ones(shape, np.int32)
        lengths = np.array([LENGTH, LENGTH - 3, LENGTH - 1]).reshape(-1, *[1] * (len(shape) - 1))
        mask = (np.arange(LENGTH) < lengths).astype(np.int32) * mask
        pad = cfg.pad_token_id if cfg.pad_token_id is not None else 0
        if cfg.decoder is not None:  # sources end with the end-of-text token, which some families classify by
            ids = np.where(np.arange(LENGTH) == lengths - 1, cfg.eos_token_id, ids)
        inputs = {"input_ids": np.where(mask, ids, pad), "attention_mask": mask}
        types = specs["token_type_ids"].limit if "token_type_ids" in specs else 0
        if types > 1 and not cfg.embedding.positions_skip_padding:
            inputs["token_type_ids"] = rng.integers(0, types, shape)
        if cfg.decoder is not None and self.head == "base" and not cfg.decoder.reads_source:
            inputs["decoder_input_ids"] = rng.integers(5, 55, (BATCH, TARGET))
        return {
            k: v.astype(np.int32) for k, v in (inputs | self._labels(rng, shape, mask)).items() if v is not None
        } | (self._float_labels(rng))

    def _labels(self, rng, shape, mask) -> dict[str, np.ndarray]:
        cfg, rows = self.config, BATCH
        tokens = np.where((rng.random(shape) < 0.7) & (mask == 1), rng.integers(0, VOCABULARY, shape), -100)
        return {
            "masked-lm": lambda: {"labels": tokens},
            "causal-lm": lambda: {"labels": tokens},
            "seq2seq-lm": lambda: {"labels": tokens[:, :TARGET]},
            "sequence-classification": lambda: {"labels": rng.integers(0, cfg.num_labels, rows)},
            "image-classification": lambda: {"labels": rng.integers(0, cfg.num_labels, rows)},
            "token-classification": lambda: {"labels": np.where(tokens < 0, -100, tokens % cfg.num_labels)},
            "question-answering": lambda: {
                "start_positions": np.array([1, 2, 40]),
                "end_positions": np.array([3, 2, 40]),
            },
            "multiple-choice": lambda: {"labels": rng.integers(0, CHOICES, rows)},
            "next-sentence-prediction": lambda: {"labels": rng.integers(0, 2, rows)},
            "pretraining": lambda: {"labels": tokens, self._pair_label: rng.integers(0, 2, rows)},
            "replaced-token-detection": lambda: {"labels": rng.integers(0, 2, shape)},
        }.get(self.head, dict)()

    @property
    def _pair_label(self):
        return f"{self.config.sentence_head}_label"

    def _float_labels(self, rng) -> dict[str, np.ndarray]:
        kind = self.config.problem_type
        if self.head not in ("sequence-classification", "image-classification") or kind not in (MULTI, REGRESSION):
            return {}
        shape = (BATCH, self.config.num_labels) if kind == MULTI else (BATCH,)
        values = rng.integers(0, 2, shape) if kind == MULTI else rng.standard_normal(shape)
        return {"labels": values.astype(np.float32)}


def _value(seed: int, path: str, parameter: Parameter) -> np.ndarray:
    """Return weights of a realistic size: those of an initializer are so small that they would hide errors."""
    rng = np.random.default_rng([seed, zlib.crc32(path.encode())])
    noise = rng.standard_normal(parameter.shape, np.float32)
    return {"ones": 1 + 0.2 * noise, "zeros": 0.2 * noise}.get(parameter.init, 0.25 * noise)


def cases() -> list[Case]:
    """Return all cases."""
    result = []
    for model_type in architectures.families():
        for head in architectures.get(model_type).heads(model_type):
            for changes in [{}, *VARIANTS.get(model_type, {}).get(head, [])]:
                hf = {"model_type": model_type, **SIZES.get(model_type, ENCODER)}
                hf |= {"num_labels": 3} if head in LABELLED else {}
                hf |= {"is_decoder": True} if head == "causal-lm" and model_type not in ("gpt2", "llama") else {}
                tag = ",".join(f"{k}={v}" for k, v in changes.items())
                result.append(Case(f"{model_type}-{head}" + (f"[{tag}]" if tag else ""), hf | changes, head))
    return result
