"""What a model refuses to compute, checked before any of it is traced."""

from collections.abc import Mapping

import numpy as np

from duonlp.config import TransformerConfig
from duonlp.errors import InputError

TOKEN_INPUTS = ("input_ids", "attention_mask", "token_type_ids", "position_ids")

DECODER_INPUTS = ("decoder_input_ids", "decoder_attention_mask", "decoder_position_ids")
"""What the decoder of an encoder-decoder reads besides."""

LABELS = {
    "question-answering": ("start_positions", "end_positions"),
    "pretraining": ("labels", "next_sentence_label", "sentence_order_label"),
    "base": (),
}
"""What a head learns from; every other head takes ``labels``."""

PER_TOKEN = ("masked-lm", "causal-lm", "pretraining", "token-classification", "replaced-token-detection")
"""Heads whose ``labels`` have the shape of input_ids; all other labels have one row a sequence."""

IGNORED = -100
"""A label that does not count."""

BEYOND = 2**30
"""A position that is in no sequence, which question answering leaves out: the start and end of rows that only fill up."""

ONE_MASK_A_ROW = ("multiple-choice", "sequence-classification", "replaced-token-detection")
"""Heads that read the mask themselves; all others take one of [batch, length, length] as well: who sees whom."""


TEACHER = "teacher_"
"""Before the names of a batch's inputs that are for a teacher alone, who has another tokenizer."""


def model_inputs(cfg: TransformerConfig, batch: Mapping, *, as_teacher: bool = False) -> dict:
    """What of a batch a model reads, but for labels: token types only where it has such.

    Args:
        as_teacher: takes ``teacher_input_ids``, ..., under their plain names, where the batch has them.

    Raises:
        InputError: there are no input_ids.
    """
    own = {name.removeprefix(TEACHER): value for name, value in batch.items() if name.startswith(TEACHER)}
    given = own if as_teacher and "input_ids" in own else batch
    if "input_ids" not in given:
        raise InputError(f"a batch has {', '.join(given) or 'nothing'}; a model needs input_ids")
    e = cfg.embedding
    taken = (*TOKEN_INPUTS, *(DECODER_INPUTS if cfg.decoder is not None else ()))
    has_types = e.type_vocab_size or e.token_types_from_words
    return {n: given[n] for n in taken if n in given and (n != "token_type_ids" or has_types)}


def check_inputs(cfg: TransformerConfig, head: str, inputs: Mapping, cached: bool = False) -> None:
    """Refuse inputs a lookup would answer with nonsense. Values are looked at only where they are at hand (not traced).

    Args:
        cached: there are earlier tokens, so an attention mask is longer than input_ids.

    Raises:
        InputError: no input_ids, an input the head does not know, a wrong number of axes, shapes that do not fit
            together, ids beyond the vocabulary, more tokens than positions, token types or labels beyond their number.
    """
    decoder = DECODER_INPUTS if cfg.decoder is not None else ()
    allowed = (*TOKEN_INPUTS, *decoder, *LABELS.get(head, ("labels",)))
    for name, value in inputs.items():
        if name not in allowed and not (name in DECODER_INPUTS and value is None):
            raise InputError(f"unknown input {name!r}; a {head} model takes {', '.join(allowed)}")
    given = {name: value for name, value in inputs.items() if value is not None}
    if "input_ids" not in given:
        raise InputError(f"the inputs are {', '.join(given) or 'empty'}; a model needs input_ids")
    shape = _shape("input_ids", given["input_ids"])
    axes = "[batch, choices, length]" if head == "multiple-choice" else "[batch, length]"
    if shape is not None and len(shape) != axes.count(",") + 1:
        raise InputError(f"input_ids has shape {shape}; a {head} model takes {axes}")
    if not cached and shape is not None and shape[-1] is not None and shape[-1] > cfg.max_length:
        raise InputError(
            f"a sequence of {shape[-1]} tokens is longer than the {cfg.max_length} positions of this {cfg.model_type}; "
            "shorten it, or pass truncation=True to the tokenizer"
        )
    target = _check_decoder(cfg, head, given, shape, cached) if cfg.decoder is not None else {}
    for name in given.keys() - target.keys():
        _check_shape(name, _shape(name, given[name]), shape, head, cached)
    e = cfg.embedding
    _check_range("input_ids", given["input_ids"], e.vocab_size, "the vocabulary")
    if "token_type_ids" in given:
        rows = e.type_vocab_size or (e.vocab_size if e.token_types_from_words else 0)
        if rows == 0:
            raise InputError(f"a {cfg.model_type} model has no token types; leave token_type_ids out")
        _check_range("token_type_ids", given["token_type_ids"], rows, "the token types")
    if "position_ids" in given and e.positions != "none":
        _check_range("position_ids", given["position_ids"], e.max_positions, "the positions")
    if "labels" in given:
        _check_labels(cfg, head, given["labels"], shape)


def _check_decoder(cfg, head: str, given: Mapping, source, cached: bool) -> dict:
    """The inputs that have the target's length, checked."""
    if cached:
        raise InputError("the cache of an encoder-decoder is made by generate; call the model without one")
    names = (*DECODER_INPUTS, "labels") if head == "seq2seq-lm" else DECODER_INPUTS
    target = {name: given[name] for name in names if name in given}
    shapes = {name: _shape(name, value) for name, value in target.items()}
    limit, words = cfg.decoder.max_length, cfg.decoder.embedding
    for name, shape in shapes.items():
        if shape is None:
            continue
        rows = None if source is None else source[0]
        if len(shape) != 2 or (None not in (shape[0], rows) and shape[0] != rows):
            raise InputError(
                f"{name} has shape {shape}, input_ids {source}; give [batch, target length], a row a source"
            )
        if shape[1] is not None and shape[1] > limit:
            raise InputError(
                f"{name} has {shape[1]} tokens, more than the {limit} positions of this {cfg.model_type}'s decoder; "
                "shorten the targets, or pass truncation=True, max_length=... to the tokenizer"
            )
    lengths = {name: shape[1] for name, shape in shapes.items() if shape is not None and shape[1] is not None}
    if len(set(lengths.values())) > 1:
        found = ", ".join(f"{name} {length}" for name, length in lengths.items())
        raise InputError(f"the target's inputs differ in length: {found}; they must be alike")
    if "decoder_input_ids" in target:
        _check_range("decoder_input_ids", target["decoder_input_ids"], words.vocab_size, "the vocabulary")
    if "labels" in target:
        _check_range("labels", target["labels"], words.vocab_size, "the vocabulary", IGNORED)
    if "decoder_position_ids" in target and words.positions != "none":
        _check_range("decoder_position_ids", target["decoder_position_ids"], words.max_positions, "the positions")
    ids = _values(given["input_ids"])
    if head == "sequence-classification" and cfg.classification.token == "last_eos" and ids is not None:
        without = np.flatnonzero(~(ids == cfg.eos_token_id).any(axis=-1))
        if without.size:
            raise InputError(
                f"row {without[0]} of input_ids does not hold the end of text, {cfg.eos_token_id}, by which a "
                f"{cfg.model_type} classifies; tokenize with add_special_tokens=True"
            )
    return target


def _shape(name: str, values) -> tuple[int | None, ...] | None:
    """The shape, with None for each size that is not known; None when not even the number of axes is."""
    if not hasattr(values, "shape"):
        try:
            return np.shape(values)
        except ValueError:
            raise InputError(f"{name}: rows differ in length; pass padding=True to the tokenizer") from None
    if getattr(values.shape, "rank", 0) is None:
        return None
    return tuple(size if isinstance(size, int) else None for size in values.shape)


def _check_shape(name: str, shape, ids, head: str, cached: bool) -> None:
    """Whether an input (or a label) has a shape that goes with that of input_ids."""
    if name == "input_ids" or shape is None or ids is None:
        return
    got, expected = shape, ids
    if name == "attention_mask":
        keys = None if cached else ids[-1]
        per_query = len(shape) == len(ids) + 1 and head not in ONE_MASK_A_ROW
        expected = (*ids, keys) if per_query else (*ids[:-1], keys)
    elif name == "position_ids" and shape[:-1] == (1,) * (len(ids) - 1):
        expected = (*shape[:-1], ids[-1])
    elif name not in TOKEN_INPUTS and not (name == "labels" and head in PER_TOKEN):
        got, expected = shape[:1], ids[:1]
    if len(got) != len(expected) or any(None not in pair and pair[0] != pair[1] for pair in zip(got, expected)):
        fit = "have as many rows" if len(expected) < len(ids) else "fit together"
        raise InputError(f"{name} has shape {shape}, input_ids {ids}; they must {fit}")


def _check_labels(cfg, head: str, labels, ids) -> None:
    """Whether class ids are below the number of classes."""
    if head in ("masked-lm", "causal-lm", "pretraining"):
        _check_range("labels", labels, cfg.embedding.vocab_size, "the vocabulary", IGNORED)
    elif head == "token-classification":
        _check_range("labels", labels, cfg.num_labels, "the labels", IGNORED)
    elif head == "sequence-classification":
        one_of_several = cfg.problem_type is None and cfg.num_labels > 1 and _is_integer(labels)
        if cfg.problem_type == "single_label_classification" or one_of_several:
            _check_range("labels", labels, cfg.num_labels, "the labels", IGNORED)


def _values(values) -> np.ndarray | None:
    """As an array; None when the values are not at hand: traced, symbolic, or on the devices of other processes."""
    kinds = {kind.__name__ for kind in type(values).__mro__}
    if kinds & {"Tracer", "KerasTensor", "SymbolicTensor"} or not getattr(values, "is_fully_addressable", True):
        return None
    try:
        return np.asarray(values)
    except NotImplementedError:  # a TensorFlow variable inside a graph
        return None


def _is_integer(values) -> bool:
    values = _values(values)
    return values is not None and values.dtype.kind in "iu"


def _check_range(name: str, values, size: int, what: str, ignored: int | None = None) -> None:
    values = _values(values)
    if values is None:
        return
    if values.dtype.kind not in "iu":
        raise InputError(f"{name} must be integers, got {values.dtype}")
    if ignored is not None:
        values = values[values != ignored]
    if values.size and (values.min() < 0 or values.max() >= size):
        bad = values.max() if values.max() >= size else values.min()
        advice = "is the tokenizer its own?"
        if name == "labels":
            advice = f"use 0 to {size - 1}" + ("" if ignored is None else f", and {ignored} where nothing is labelled")
        raise InputError(f"{name} holds {bad}, but {what} of this model ends at {size - 1}; {advice}")
