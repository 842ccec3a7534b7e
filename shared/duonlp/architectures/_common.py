"""Helpers shared by the family files: rows of the weight table, and the keys common to every config.json."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from duonlp.config import PROBLEM_TYPES, TransformerConfig
from duonlp.errors import ConfigError
from duonlp.schema import (
    BOOL,
    LABELS,
    MOST_LABELS,
    PADDING,
    SCALE,
    TEXT,
    TOKEN,
    integer,
    is_class_id,
    list_of,
    mapping_of,
    shorten,
)  # fmt: skip


@dataclass(frozen=True)
class Part:
    """The place of a parameter in a checkpoint tensor that holds several side by side, such as query, key and value.

    All arrays are in the layout of our parameters: a kernel is [in, out] even where the checkpoint stores [out, in].

    Attributes:
        index: Which of the parts this parameter is.
        sizes: Sizes of all parts in order, up to a common factor: (1, 1, 1), or (4, 1, 1) for grouped queries.
        axis: Axis along which the parts lie: -1, the outputs, or 0, the inputs.
        groups: Number of blocks that the axis consists of, each with its share of every part: the number of heads where a
            family interleaves queries, keys and values by head (GPT-NeoX).
    """

    index: int
    sizes: tuple[int, ...]
    axis: int = -1
    groups: int = 1

    def whole_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """Return the shape of the whole of which a part has the given shape."""
        axis = self.axis % len(shape)
        return *shape[:axis], shape[axis] * sum(self.sizes) // self.sizes[self.index], *shape[axis + 1 :]

    def of(self, whole: np.ndarray) -> np.ndarray:
        """Return the part of an array, as a view if the parts are not interleaved."""
        values = np.moveaxis(whole, self.axis, -1)
        blocks = values.reshape(*values.shape[:-1], self.groups, -1)
        unit = blocks.shape[-1] // sum(self.sizes)
        start = sum(self.sizes[: self.index]) * unit
        part = blocks[..., start : start + self.sizes[self.index] * unit]
        return np.moveaxis(part.reshape(*values.shape[:-1], -1), -1, self.axis)

    def join(self, parts: Sequence[np.ndarray]) -> np.ndarray:
        """Return the whole that consists of all parts, in order; the inverse of :meth:`of`."""
        moved = [np.moveaxis(part, self.axis, -1) for part in parts]
        blocks = [x.reshape(*x.shape[:-1], self.groups, -1) for x in moved]
        return np.moveaxis(np.concatenate(blocks, axis=-1).reshape(*moved[0].shape[:-1], -1), -1, self.axis)


@dataclass(frozen=True)
class Weight:
    """One row of a weight table: a checkpoint tensor and its place in our parameter tree.

    Attributes:
        name: Name of the tensor in the checkpoint.
        path: Path of our parameter. None marks a tensor that is recognized but not loaded, because it equals another one or what
            the model computes (then ``own_path`` or ``constant`` says what it is compared with), or because it is unused.
            Computed positions are written if their layout is ``positions`` or ``decoder_positions``.
        layout: ``linear`` is [out, in] in the checkpoint and [in, out] here; ``row`` has a leading axis of size 1 in the
            checkpoint; ``patches`` is a convolution [out, channels, height, width] in the checkpoint and [in, out] here;
            ``image_positions`` is [1, tokens, width] in the checkpoint and [tokens, width] here, interpolated if the model
            is loaded for another image size; ``packed``, ``scale``, ``scalar`` and ``shape`` belong to quantized weights, see
            duonlp.architectures._quantization; ``conv1d``, ``embedding`` and ``vector`` have the same shape on both sides.
        part: Place of the parameter in the tensor, if the checkpoint fuses several of our parameters.
        aliases: Alternative names accepted when reading. Tensors under several names of one row alone must be equal, except
            those of ``copies``.
        copies: Additional names written when saving: parameters that Transformers has and does not use.
        shape: Shape in the checkpoint of a convolution; grid [rows, columns] of patches of an image's positions.
        optional: Whether a checkpoint may lack the tensor; the parameter is then initialized.
        own_path: Of a tensor without a path that Transformers loads: path of the parameter that the model has for it if it
            differs from what it copies. See :mod:`duonlp.checkpoints.copies`.
        constant: Of a tensor without a path that Transformers ignores: name in ``duonlp.checkpoints.copies.CONSTANTS`` of the
            values that it is compared with, or "unused" if no values could matter.
    """

    name: str
    path: str | None
    layout: str
    part: Part | None = None
    aliases: tuple[str, ...] = ()
    copies: tuple[str, ...] = ()
    shape: tuple[int, ...] = ()
    optional: bool = False
    own_path: str = ""
    constant: str = ""

    def __post_init__(self):
        if self.path is None and bool(self.own_path) == bool(self.constant):
            raise ConfigError(
                f"the row {self.name!r} has no path; state what it equals, with one of own_path and constant"
            )


OUTPUT, BIAS = "lm_head/output/kernel", "lm_head/bias"
"""Paths of the parameters of an LM head's vocabulary projection."""

WORDS, DECODER_WORDS = (f"{stack}embeddings/word_embeddings/embedding" for stack in ("", "decoder_"))
"""Paths of the word tables: the encoder's, or the only one; and the decoder's, if it has its own."""

POSITION_TABLES = tuple(f"{stack}embeddings/position_table" for stack in ("", "decoder_"))
"""Paths of tables of fixed positions that are not the computed ones, of encoder and decoder."""


def output(name: str, tied: bool) -> list[Weight]:
    """Return the row of an LM head's vocabulary projection without a bias, which may be tied to the words.

    The row of the words has ``name`` among its aliases if they are tied: a checkpoint may hold the table under either name.
    """
    return [Weight(name, None, "linear", own_path=OUTPUT) if tied else Weight(name, OUTPUT, "linear")]


def word_tables(
    cfg: TransformerConfig, head: str, prefix: str = "", *, output_first: bool = True,
    always_tied: bool = False, separate_shared: bool = True,
) -> list[Weight]:  # fmt: skip
    """Return the rows of the word tables of an encoder-decoder, which may be one, and of the output, which may be tied to them.

    Where Transformers ties several tensors, it takes the first that a checkpoint has for all that are missing.

    Args:
        cfg: The model.
        head: Its head.
        prefix: Prefix of the names.
        output_first: Whether Transformers takes the output, if the shared table is missing, before those of the stacks.
        always_tied: Whether Transformers ties equal tables whatever the configuration says.
        separate_shared: Whether a model whose stacks have their own tables has the shared table as well, and does not use it.
    """
    assert cfg.decoder is not None
    shared, encoder, decoder = (
        f"{prefix}{name}.weight" for name in ("shared", "encoder.embed_tokens", "decoder.embed_tokens")
    )
    tied, logits = cfg.lm_head.tied, "lm_head.weight"
    if cfg.decoder.shares_words:
        stacks = (decoder, encoder) if output_first else (encoder, decoder)
        first = output_first and head == "seq2seq-lm"
        others = ((logits, *stacks) if first else (*stacks, logits)) if tied else stacks
        copies = () if tied or always_tied else stacks  # where Transformers ties nothing, it has all three
        rows = [Weight(shared, WORDS, "embedding", aliases=others, copies=copies)]
        rows += [Weight(encoder, None, "embedding", own_path=WORDS)]
        rows += [Weight(decoder, None, "embedding", own_path=DECODER_WORDS)]
    else:
        unused = (shared,) if separate_shared else ()  # Transformers ties a missing output to it
        rows = [
            Weight(encoder, WORDS, "embedding", aliases=(shared,), copies=() if tied else unused),
            Weight(
                decoder, DECODER_WORDS, "embedding", aliases=(logits, shared) if tied else (shared,),
                copies=unused if tied else (),
            ),
        ]  # fmt: skip
    return rows + (output(logits, tied) if head == "seq2seq-lm" else [])


def linear(name: str, path: str, bias: bool = True, alias: str = "") -> list[Weight]:
    """Return the rows of a torch ``Linear``: weight and bias; ``alias`` is another name accepted when reading."""
    weight, offset = [(f"{alias}.{end}",) if alias else () for end in ("weight", "bias")]
    rows = [Weight(f"{name}.weight", f"{path}/kernel", "linear", aliases=weight)]
    return rows + [Weight(f"{name}.bias", f"{path}/bias", "vector", aliases=offset)] * bias


def fused_linear(
    name: str, paths: Sequence[str], bias: bool = True, *, sizes: Sequence[int] | None = None, groups: int = 1,
    layout: str = "linear",
) -> list[Weight]:  # fmt: skip
    """Return the rows of a torch ``Linear`` whose outputs are those of several of our layers.

    Args:
        name: Name of the module in the checkpoint.
        paths: Paths of our layers, in order.
        bias: Whether they have biases.
        sizes: See Part; by default all parts have the same size.
        groups: See Part.
        layout: See Weight.
    """
    sizes = (1,) * len(paths) if sizes is None else tuple(sizes)
    parts = [(path, Part(i, sizes, groups=groups) if len(paths) > 1 else None) for i, path in enumerate(paths)]
    rows = [Weight(f"{name}.weight", f"{path}/kernel", layout, part) for path, part in parts]
    return rows + [Weight(f"{name}.bias", f"{path}/bias", "vector", part) for path, part in parts] * bias


def conv1d(name: str, paths: list[str]) -> list[Weight]:
    """Return the rows of a GPT-2 ``Conv1D``, which may concatenate several of our layers."""
    return fused_linear(name, paths, layout="conv1d")


def norm(name: str, path: str, bias: bool = True, alias: str = "") -> list[Weight]:
    """Return the rows of a ``LayerNorm``; checkpoints converted from TensorFlow 1 call them ``gamma`` and ``beta``."""
    scale, offset = [(f"{alias}.{end}",) if alias else () for end in ("weight", "bias")]
    rows = [Weight(f"{name}.weight", f"{path}/scale", "vector", aliases=(f"{name}.gamma", *scale))]
    return rows + [Weight(f"{name}.bias", f"{path}/bias", "vector", aliases=(f"{name}.beta", *offset))] * bias


def embedding(name: str, path: str, aliases: tuple[str, ...] = ()) -> list[Weight]:
    """Return the row of an embedding table, [rows, width] on both sides."""
    return [Weight(f"{name}.weight", f"{path}/embedding", "embedding", aliases=aliases)]


def lm_output(weight: str, bias: str, tied: bool, bias_copy: str | None = None) -> list[Weight]:
    """Return the rows of an LM head's vocabulary projection with a bias.

    Args:
        weight: Tensor name of the weight.
        bias: Tensor name of the bias.
        tied: Whether the weight is the word embedding table; it then has no parameter of its own.
        bias_copy: Second name that Transformers gives the bias. It ties the two biases only if the weight is tied, and
            then saves only one of them; otherwise it saves both.
    """
    also = (bias_copy,) if bias_copy else ()
    if not tied:
        return [*output(weight, tied), Weight(bias, BIAS, "vector", aliases=also, copies=also)]
    if bias_copy is None:
        return [*output(weight, tied), Weight(bias, BIAS, "vector")]
    used = Weight(bias, None, "vector", own_path=BIAS)
    return [*output(weight, tied), Weight(bias_copy, BIAS, "vector", aliases=(bias,)), used]


def pop_options(hf: dict[str, Any], defaults: Mapping[str, Any]) -> dict[str, Any]:
    """Remove the keys of ``defaults`` from ``hf`` and return their values, using the defaults for missing keys.

    The keys left in ``hf`` become ``TransformerConfig.extra``.
    """
    return {key: hf.pop(key, default) for key, default in defaults.items()}


def check_supported(hf: Mapping[str, Any], supported: Mapping[str, Any]) -> None:
    """Raise ConfigError if an option is set to something other than its only supported value."""
    for key, value in supported.items():
        if key in hf and hf[key] != value and hf[key] is not None:
            raise ConfigError(
                f"config option {key}={shorten(hf[key])} of {hf.get('model_type')} is not supported; only {value!r} is"
            )


def head_dim(hidden_size: int, num_heads: int) -> int:
    """Return the width of one attention head.

    Raises:
        ConfigError: ``hidden_size`` is not divisible by ``num_heads``.
    """
    if num_heads < 1 or hidden_size % num_heads:
        raise ConfigError(
            f"hidden size {hidden_size} is not a multiple of the number of attention heads, {num_heads}; change one of them"
        )
    return hidden_size // num_heads


UNSUPPORTED = {
    "add_cross_attention": False,
    "position_embedding_type": "absolute",
    "pruned_heads": {},
}
"""Options that any family may have and no engine implements, with the value that disables them."""

SPECIAL_IDS = ("pad_token_id", "bos_token_id", "eos_token_id")

COMMON_SCHEMA = {
    "model_type": TEXT,
    "architectures": list_of(TEXT, longest=100) | None,
    "id2label": mapping_of(TEXT | integer(-(2**31), 2**31), is_class_id, "class numbers", MOST_LABELS) | None,
    "num_labels": LABELS | None,
    "problem_type": TEXT | None,
    "is_encoder_decoder": BOOL | None,
    "initializer_range": SCALE,
    "pad_token_id": PADDING | None,
    "bos_token_id": PADDING | None,
    "eos_token_id": PADDING | list_of(TOKEN, longest=1000) | None,
    "decoder_start_token_id": TOKEN | None,
    "tie_word_embeddings": BOOL | None,
}
"""Kinds of the keys of config.json that all families share; a family's SCHEMA has those of its own keys."""


def pop_common(
    hf: dict[str, Any], special_ids: Mapping[str, Any], *, num_labels: int = 2, encoder_decoder: bool = False
) -> dict[str, Any]:
    """Remove the keys common to all families from ``hf`` and return them as fields of TransformerConfig.

    These are the labels, the problem type, the initializer range and the special token ids.

    Args:
        hf: Contents of config.json, modified in place.
        special_ids: The family's default special token ids, for keys that config.json lacks.
        num_labels: The family's default number of labels.
        encoder_decoder: Whether the family is an encoder-decoder.

    Raises:
        ConfigError: an option is unsupported, ``id2label`` has gaps, or ``problem_type`` is unknown.
    """
    check_supported(hf, UNSUPPORTED | {"is_encoder_decoder": encoder_decoder})
    for key in ("model_type", "architectures", "label2id"):
        hf.pop(key, None)
    id2label, stored_num_labels = hf.pop("id2label", None), hf.pop("num_labels", None)
    if id2label is None:
        labels = tuple(f"LABEL_{i}" for i in range(num_labels if stored_num_labels is None else stored_num_labels))
    else:
        by_id = {int(k): v for k, v in id2label.items()}
        if len(by_id) < len(id2label) or sorted(by_id) != list(range(len(by_id))):
            ids = shorten([int(k) for k in id2label])
            raise ConfigError(f"id2label has the ids {ids}; expected 0 to {len(id2label) - 1} without gaps")
        labels = tuple(by_id[i] for i in range(len(by_id)))
    problem_type = hf.pop("problem_type", None)
    if problem_type not in (None, *PROBLEM_TYPES):
        raise ConfigError(f"problem_type {problem_type!r} is unknown; expected one of {', '.join(PROBLEM_TYPES)}")
    ids = {key: hf.pop(key, special_ids.get(key)) for key in SPECIAL_IDS}
    if isinstance(ids["eos_token_id"], list):
        ids["eos_token_id"] = tuple(ids["eos_token_id"])
    return {
        "labels": labels,
        "problem_type": problem_type,
        "initializer_range": hf.pop("initializer_range", 0.02),
        **ids,
    }


def common_hf(cfg: TransformerConfig) -> dict[str, Any]:
    """Return the keys of config.json that all families share; the inverse of :func:`pop_common`."""
    eos = cfg.eos_token_id
    return {
        "id2label": {str(i): label for i, label in cfg.id2label.items()},
        "label2id": cfg.label2id,
        "initializer_range": cfg.initializer_range,
        "pad_token_id": cfg.pad_token_id,
        "bos_token_id": cfg.bos_token_id,
        "eos_token_id": list(eos) if isinstance(eos, tuple) else eos,
        "tie_word_embeddings": cfg.lm_head.tied,
    } | ({"problem_type": cfg.problem_type} if cfg.problem_type else {})
