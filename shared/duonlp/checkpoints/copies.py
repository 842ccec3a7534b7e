"""Tensors of a checkpoint that are taken to equal others, or what the model computes, and what happens where they do not.

- Tied tensors (the words of two stacks, the output, two names of its bias) that differ are loaded as they are and not tied, as
  Transformers does, with one warning, and the configuration is untied, see :func:`resolve`.
- A table of fixed positions that Transformers loads replaces the computed one.
- Tensors that Transformers ignores are ignored, with a warning if they differ from what is computed.
- Two names of one tensor that differ are an error: Transformers would take either.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import ml_dtypes
import numpy as np

from duonlp import architectures
from duonlp.architectures._common import BIAS, DECODER_WORDS, OUTPUT, POSITION_TABLES, WORDS, Weight
from duonlp.checkpoints.layouts import fixed_positions
from duonlp.checkpoints.safetensors_file import FLOATS, StoredTensor
from duonlp.config import TransformerConfig
from duonlp.errors import CheckpointError
from duonlp.heads import HEADS
from duonlp.positions import rotary_frequencies
from duonlp.util.json_text import to_json

BUFFERS = {
    r"(^|\.)position_ids$": "position_ids",
    r"(^|\.)token_type_ids$": "zeros",
    r"\.(attn|crossattention)\.bias$": "causal_mask",
    r"\.(attn|crossattention)\.masked_bias$": "masked_bias",
    r"\.rotary_emb\.inv_freq$": "rotary_frequencies",
}
"""Constants that older versions of Transformers saved: their names in CONSTANTS by the patterns of their tensors' names."""


class Equality:
    """Compares stored tensors, each pair of them once."""

    def __init__(self) -> None:
        self._known: dict[tuple[str, str], bool] = {}

    def __call__(self, first: StoredTensor, second: StoredTensor) -> bool:
        """Return whether two tensors are of one shape and have the same values: bits, or numbers for different dtypes."""
        names = first.name, second.name
        if names not in self._known:
            rows = _pairs_of_rows(first, second)
            self._known[names] = first.shape == second.shape and all(_equal(*pair) for pair in rows)
        return self._known[names]


@dataclass(frozen=True)
class Resolution:
    """A configuration that agrees with the tensors of a checkpoint, and the choice among those.

    Attributes:
        cfg: The configuration.
        chosen: Tensors by the path of their parameter, where the weight table would take another one.
        settled: Names of tensors that differ from what they were taken to copy.
        notes: What was done, for a warning.
    """

    cfg: TransformerConfig
    chosen: Mapping[str, StoredTensor]
    settled: frozenset[str]
    notes: tuple[str, ...]

    def applies_to(self, cfg: TransformerConfig) -> bool:
        """Return whether a configuration, which may have other labels, ties and computes the same tensors."""
        return cfg.model_type == self.cfg.model_type and _ties(cfg) == _ties(self.cfg)


def present(row: Weight, prefix: str, tensors: Mapping[str, StoredTensor]) -> list[StoredTensor]:
    """Return the tensors under the names of a row, and those without the prefix of the base model."""
    names = [row.name, *row.aliases]
    names += [name.removeprefix(prefix) for name in names if name.startswith(prefix)]
    return [tensors[name] for name in dict.fromkeys(names) if name in tensors]


def resolve(
    cfg: TransformerConfig, head: str | None, tensors: Mapping[str, StoredTensor], equal: Equality
) -> Resolution:
    """Untie the tensors that a configuration says are tied and a checkpoint has with different values.

    Follows ``tie_weights`` of Transformers 5: where some of several tied tensors are missing, the first that is present takes
    their place, and each of the others is tied to it if it is equal and used as it is if it is not.

    Args:
        cfg: The configuration according to config.json.
        head: The head that will be loaded; None for one with all tensors that may be tied.
        tensors: The checkpoint's tensors by name.
        equal: Comparison of tensors.
    """
    family = architectures.get(cfg.model_type)
    names = family.heads(cfg.model_type)
    if head not in names:
        head = next((name for name in names if "lm_head" in HEADS[name].layers), "base")
    table = family.weights(cfg, head)
    first = {row: found[0] for row in table if (found := present(row, family.PREFIX, tensors))}
    own = {row.own_path: tensor for row, tensor in first.items() if row.own_path}
    tied_to = {row.path: tensor for row, tensor in first.items() if row.path in (WORDS, DECODER_WORDS, BIAS)}
    different: list[tuple[StoredTensor, StoredTensor]] = []

    def used(path: str, source: str) -> StoredTensor | None:
        """Return a parameter's tensor: its own one if that differs from `source`, the path of what it is tied to."""
        tied, tensor = tied_to.get(source), own.get(path)
        if tied is None or tensor is None or tied == tensor or tied.shape != tensor.shape:
            return tied
        if not {tied.dtype, tensor.dtype} <= set(FLOATS) or equal(tied, tensor):
            return tied
        different.append((tied, tensor))
        return tensor

    shares = cfg.decoder is not None and cfg.decoder.shares_words
    encoder = used(WORDS, WORDS) if shares else tied_to.get(WORDS)
    decoder = used(DECODER_WORDS, WORDS) if shares else tied_to.get(DECODER_WORDS, encoder)
    logits = used(OUTPUT, DECODER_WORDS if cfg.decoder is not None and not shares else WORDS)
    bias = used(BIAS, BIAS)
    chosen: dict[str, StoredTensor | None] = {}
    resolved = cfg
    if shares and encoder != decoder:
        assert cfg.decoder is not None
        resolved = replace(resolved, decoder=replace(cfg.decoder, shares_words=False))
        chosen |= {WORDS: encoder, DECODER_WORDS: decoder}
    if logits != decoder and any(row.own_path == OUTPUT for row in table):
        resolved = resolved.replace(lm_head__tied=False)
        chosen[OUTPUT] = logits
    if bias != tied_to.get(BIAS):
        chosen[BIAS] = bias
    resolved = _with_positions(resolved, own)
    settled = frozenset(tensor.name for pair in different for tensor in pair)
    return Resolution(
        resolved, {k: v for k, v in chosen.items() if v is not None}, settled, _notes(cfg, resolved, different)
    )


def _with_positions(cfg: TransformerConfig, own: Mapping[str, StoredTensor]) -> TransformerConfig:
    """Return a configuration with stored positions, if a table of the right shape is not the computed one."""
    for path in POSITION_TABLES:
        tensor = own.get(path)
        if tensor is None or tensor.dtype not in FLOATS:
            continue
        table = fixed_positions(path, cfg)
        if tensor.shape == table.shape and not np.abs(tensor.read().astype(np.float32) - table).max() <= 1e-6:  # or NaN
            assert cfg.decoder is not None
            words = replace(cfg.decoder.embedding, stored_positions=True)
            return replace(
                cfg,
                embedding=replace(cfg.embedding, stored_positions=True),
                decoder=replace(cfg.decoder, embedding=words),
            )
    return cfg


def _notes(
    cfg: TransformerConfig, resolved: TransformerConfig, different: Sequence[tuple[StoredTensor, StoredTensor]]
) -> tuple[str, ...]:
    """Return the text of the warning about tied tensors that differ, if there are any."""
    if not different:
        return ()
    pairs = ", ".join(f"{second.name} from {first.name}" for first, second in different)
    old, new = architectures.hf_config(cfg), architectures.hf_config(resolved)
    keys = [f"{key} to {to_json(new[key])}" for key in new if new[key] != old.get(key) and key != "stored_positions"]
    remedy = f"set {' and '.join(keys)} in config.json" if keys else f"remove {different[0][0].name}"
    remedy += ", pass tie_word_embeddings=False" if keys == ["tie_word_embeddings to false"] else ""
    return (
        f"the configuration ties tensors that differ ({pairs}); they are loaded as they are and not tied, as Transformers does: "
        f"{remedy}, or save the model again, to silence this warning",
    )


def _ties(cfg: TransformerConfig) -> tuple[bool, bool, bool]:
    """Return what is tied or computed: the output, the decoder's words, and fixed positions."""
    shares = cfg.decoder is not None and cfg.decoder.shares_words
    return bool(cfg.lm_head.tied), shares, cfg.embedding.stored_positions


def owners(rows: Iterable[Weight]) -> dict[str, set[str]]:
    """Return, for every name that a row reads or writes, the main names of those rows."""
    out: dict[str, set[str]] = {}
    for row in rows:
        for name in (row.name, *row.aliases, *row.copies):
            out.setdefault(name, set()).add(row.name)
    return out


def check_kind(tensor: StoredTensor, dtype: np.dtype) -> None:
    """Raise CheckpointError unless a tensor holds floating-point numbers, or where ``dtype`` is an integer's, just these."""
    if dtype.kind not in "iu":
        check_float(tensor)
    elif tensor.dtype != dtype:
        raise CheckpointError(
            f"{tensor.file}: tensor {tensor.name!r} has dtype {tensor.dtype}; expected {dtype} of a quantized layer: "
            "quantization_config of config.json does not match the weights"
        )


def check_float(tensor: StoredTensor) -> None:
    """Raise CheckpointError if the values of a parameter are stored as integers."""
    if tensor.dtype not in FLOATS:
        raise CheckpointError(
            f"{tensor.file}: tensor {tensor.name!r} has dtype {tensor.dtype}; expected one of "
            f"{', '.join(map(str, FLOATS))}: save the model again in one of these"
        )


def check_same(first: StoredTensor, second: StoredTensor, remedy: str, equal: Equality) -> None:
    """Raise CheckpointError, naming both, if two tensors that stand for the same values differ.

    Args:
        first: A tensor.
        second: Another one.
        remedy: What to do, for the error message.
        equal: Comparison of tensors.
    """
    if first.dtype != second.dtype:
        check_float(first)
        check_float(second)
    if not equal(first, second):
        names = " and ".join(repr(tensor.origin or tensor.name) for tensor in (first, second))
        raise CheckpointError(f"{first.file}: the tensors {names} stand for the same values and differ; {remedy}")


def check_copies(
    stored: Sequence[tuple[Weight, StoredTensor]],
    loaded: Mapping[str, StoredTensor | None],
    cfg: TransformerConfig,
    equal: Equality,
) -> list[str]:
    """Compare the tensors that are recognized but not loaded with what they copy, except those whose row is an alias of another.

    Args:
        stored: The tensors, and their rows in the weight table, which have no path.
        loaded: The tensor of each parameter by path.
        cfg: The model.
        equal: Comparison of tensors.

    Returns:
        Names of tensors that are ignored although they differ from what is computed.

    Raises:
        CheckpointError: A tensor that would have to be loaded differs from what it copies.
    """
    words = next((loaded[path] for path in (DECODER_WORDS, WORDS) if path in loaded), None)
    ignored = []
    for row, tensor in stored:
        if row.own_path == OUTPUT and words is not None:
            remedy = "set tie_word_embeddings to false in config.json, or remove the one that is wrong"
            check_same(words, tensor, remedy, equal)
        elif row.own_path in POSITION_TABLES:
            check_float(tensor)
            if not _are_positions(cfg, tensor, row.own_path):
                raise CheckpointError(
                    f"{tensor.file}: the positions {tensor.name!r} differ from those that {cfg.model_type} computes, "
                    f"float [{cfg.embedding.max_positions}, {cfg.embedding.size}]; correct config.json, or remove the tensor"
                )
        elif row.constant and not CONSTANTS[row.constant](cfg, tensor):
            ignored.append(tensor.name)
    return ignored


# -- constants -------------------------------------------------------------------------------------------------------------


def _are_positions(cfg: TransformerConfig, tensor: StoredTensor, layout: str) -> bool:
    """Return whether stored positions are those that the model computes, in the rows that both have."""
    table = fixed_positions(layout, cfg)
    if tensor.dtype not in FLOATS or tensor.shape[1:] != table.shape[1:]:
        return False
    rows = min(len(table), tensor.shape[0])
    # Sines of large angles differ between libraries; half precision rounds them.
    tolerance = 1e-3 + float(ml_dtypes.finfo(tensor.dtype).eps)
    stored = tensor.read(0, rows).astype(np.float32)
    return bool(np.abs(stored - table[:rows]).max(initial=0.0) <= tolerance)  # False for NaN


def _is_mask(cfg: TransformerConfig, tensor: StoredTensor) -> bool:
    """Return whether a tensor is a causal mask [..., n, n]."""
    if len(tensor.shape) < 2 or tensor.shape[-1] != tensor.shape[-2]:
        return False
    return bool(np.array_equal(tensor.read() != 0, np.broadcast_to(np.tri(tensor.shape[-1], dtype=bool), tensor.shape)))


def _are_frequencies(cfg: TransformerConfig, tensor: StoredTensor) -> bool:
    """Return whether a tensor holds the rotary frequencies of some layer, scaled or, as older versions stored them, not."""
    configs = {layer.attention.rotary for layer in cfg.layers.weights} - {None}
    candidates = [rotary for c in configs if c is not None for rotary in (c, replace(c, scaling=None))]
    stored = tensor.read().astype(np.float32)
    tolerance = 1e-4 + float(ml_dtypes.finfo(tensor.dtype).eps) if tensor.dtype in FLOATS else 0.0
    tables = (rotary_frequencies(rotary)[0] for rotary in candidates)
    return any(stored.shape == table.shape and np.allclose(stored, table, rtol=tolerance, atol=0) for table in tables)


CONSTANTS: dict[str, Callable[[TransformerConfig, StoredTensor], bool]] = {
    "unused": lambda cfg, tensor: True,
    "zeros": lambda cfg, tensor: not tensor.read().any(),
    "position_ids": lambda cfg, tensor: np.array_equal(tensor.read().ravel(), np.arange(np.prod(tensor.shape, dtype=int))),
    "causal_mask": _is_mask,
    "masked_bias": lambda cfg, tensor: bool((tensor.read().astype(np.float32) <= -9e3).all()),  # -1e4, rounded
    "rotary_frequencies": _are_frequencies,
    "encoder_positions": lambda cfg, tensor: _are_positions(cfg, tensor, "positions"),
    "decoder_positions": lambda cfg, tensor: _are_positions(cfg, tensor, "decoder_positions"),
}  # fmt: skip
"""Functions that tell whether a tensor that Transformers ignores has the values that the model computes."""


def _pairs_of_rows(first: StoredTensor, second: StoredTensor) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield the same rows of two tensors of one shape, about 4 MB at a time."""
    rows = first.shape[0] if first.shape else 1
    size = max(1, int(np.prod(first.shape[1:], dtype=np.int64)) * first.dtype.itemsize)
    step = max(1, (4 << 20) // size)
    whole = {id(tensor): tensor.read() for tensor in (first, second) if not tensor.has_rows}
    for start in range(0, rows, step):
        stop = start + step
        a, b = (whole[id(t)][start:stop] if id(t) in whole else t.read(start, stop) for t in (first, second))
        yield a, b


def _equal(a: np.ndarray, b: np.ndarray) -> bool:
    """Compare bits, or, for different dtypes, values."""
    if a.dtype == b.dtype:
        return a.tobytes() == b.tobytes()
    return np.array_equal(a.astype(np.float64), b.astype(np.float64))
