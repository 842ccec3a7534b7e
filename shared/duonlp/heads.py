"""Every head described once: its layers, its outputs, the labels they are trained on, and its loss.

Both engines, label checks, trainers, distillation, exporters and pipelines read this table. A new head is a row here, and
its layers in ``duonlp.parameters`` and in each engine's ``heads.py``.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from types import ModuleType
from typing import Any

import numpy as np

from duonlp import numpy_ops
from duonlp.config import TransformerConfig
from duonlp.errors import InputError
from duonlp.labels import (
    IGNORED,
    WEIGHTS,
    check_against_logits,
    dtype_of,
    is_integral,
    is_number,
    standard_labels,
    standard_weights,
    static_shape,
)
from duonlp.typing import Array, Batch, Ops

NO_POSITION = 2**30
"""Start and end position of padding rows: beyond every sequence, so that question answering ignores the row."""

ROW_MASK = "row_mask"
"""Optional entry of a batch, [B]: 0 for rows that only fill up the batch and count for nothing in any loss."""

BY_PROBLEM_TYPE = "by problem type"
"""Kind of an output whose labels may be one class, several classes or numbers, as ``config.problem_type`` says."""

PROBLEM_KINDS = {
    "single_label_classification": "softmax",
    "multi_label_classification": "bernoulli",
    "regression": "regression",
}


@dataclass(frozen=True)
class Output:
    """An output of a head: logits, and the labels they are trained on.

    Attributes:
        logits: Name of the output: [B, C], or [B, T, C] with one distribution per token. Kinds "span" and "bernoulli"
            per token have no class axis.
        labels: Name of its labels.
        kind: What the logits mean: "softmax" (one of C classes), "bernoulli" (each of C classes on its own),
            "regression" (numbers), "span" (one of T positions), or :data:`BY_PROBLEM_TYPE`.
        over: What the classes are: "vocabulary", "labels" (``config.labels``), "pair" (two), "order" (ALBERT's two orders of
            sentences, of which it has as many as labels), "choices", or "positions".
        per_token: Whether there is one distribution per token rather than per text.
        next_token: Whether the logits at a position predict the label of the next one.
        counts_attended: Whether the loss counts the tokens of the attention mask, whatever their labels.
        distills_attended: Whether distillation compares all attended tokens by default, rather than the labelled ones.
        share: Factor of the output's loss in the head's loss.
    """

    logits: str = "logits"
    labels: str = "labels"
    kind: str = "softmax"
    over: str = "labels"
    per_token: bool = False
    next_token: bool = False
    counts_attended: bool = False
    distills_attended: bool = False
    share: float = 1.0

    def kind_for(self, config: TransformerConfig, labels: Array | None = None) -> str:
        """Return the kind of the logits of a model.

        Args:
            config: Configuration of the model.
            labels: Labels of a batch, or None. Without a problem_type, integers and bool mean one class per text, and floats
                several classes, as in Transformers.
        """
        if not self.is_by_problem_type:
            return self.kind
        if config.problem_type is not None:
            return PROBLEM_KINDS[config.problem_type]
        if config.num_labels == 1:
            return "regression"
        return "softmax" if labels is None or are_class_ids(labels) else "bernoulli"

    @property
    def is_by_problem_type(self) -> bool:
        """Whether its kind depends on ``config.problem_type``."""
        return self.kind == BY_PROBLEM_TYPE

    def classes(self, config: TransformerConfig) -> int | None:
        """Return the number of classes that labels may name; None if it depends on the batch."""
        if self.over == "vocabulary":
            return config.as_decoder().embedding.vocab_size
        return {"labels": config.num_labels, "order": config.num_labels, "pair": 2}.get(self.over)

    def align(self, x: Array, is_logits: bool = False) -> Array:
        """Drop the last position of logits and the first of labels, masks [B, T] and weights, if positions are shifted."""
        if x is None or not self.next_token or len(x.shape) < 2:
            return x
        return x[:, :-1] if is_logits else x[:, 1:]


SENTENCE_OUTPUTS = {
    "next_sentence": Output("seq_relationship_logits", "next_sentence_label", over="pair"),
    "sentence_order": Output("sop_logits", "sentence_order_label", over="order"),
}
"""Second output of the head "pretraining", by ``config.sentence_head``."""


@dataclass(frozen=True)
class Head:
    """A head.

    Attributes:
        outputs: Its outputs; that of the sentence pair is :data:`SENTENCE_OUTPUTS`' (see :meth:`outputs_of`).
        layers: Its layers, as :mod:`duonlp.parameters` describes them.
        pooling: Field of the configuration that says how it pools or transforms the last hidden states; "" for neither.
        sentence_pair: Whether it has the output of :data:`SENTENCE_OUTPUTS` too.
        generates: Whether models with it generate text.
        causal: Whether it needs a model in which tokens attend only to earlier ones.
        reads_target: Whether an encoder-decoder with it takes ``decoder_input_ids``; otherwise the decoder reads the source.
        shifts_labels: Whether the decoder reads the labels, shifted to the right, if it gets no inputs.
        has_choices: Whether inputs are [batch, choices, length].
        mask_per_query: Whether the attention mask may be [batch, length, length], because the head does not read it.
        selects_positions: Whether it takes ``logit_positions`` int [batch, n], the only positions to compute logits for.
    """

    outputs: tuple[Output, ...] = (Output(),)
    layers: tuple[str, ...] = ()
    pooling: str = ""
    sentence_pair: bool = False
    generates: bool = False
    causal: bool = False
    reads_target: bool = False
    shifts_labels: bool = False
    has_choices: bool = False
    mask_per_query: bool = True
    selects_positions: bool = False

    def outputs_of(self, config: TransformerConfig) -> tuple[Output, ...]:
        """Return the outputs of a model's head that have labels, the main one first."""
        return (*self.outputs, *([SENTENCE_OUTPUTS[config.sentence_head]] if self.sentence_pair else []))

    @property
    def label_names(self) -> tuple[str, ...]:
        """Names of all labels that some model with this head takes."""
        pairs = SENTENCE_OUTPUTS.values() if self.sentence_pair else ()
        return tuple(output.labels for output in (*self.outputs, *pairs))


_WORDS = Output(over="vocabulary", per_token=True)
_MASKED_WORDS = replace(_WORDS, distills_attended=True)
_SPANS = [Output(f"{end}_logits", f"{end}_positions", "span", over="positions", share=0.5) for end in ("start", "end")]

HEADS: dict[str, Head] = {
    "base": Head((), pooling="pooler", reads_target=True),
    "masked-lm": Head((_MASKED_WORDS,), ("lm_head",), selects_positions=True),
    "causal-lm": Head(
        (replace(_WORDS, next_token=True),), ("lm_head",), generates=True, causal=True, selects_positions=True
    ),
    "seq2seq-lm": Head((_WORDS,), ("lm_head",), generates=True, reads_target=True, shifts_labels=True),
    "sequence-classification": Head(
        (Output(kind=BY_PROBLEM_TYPE),), ("classifier",), pooling="classification", mask_per_query=False
    ),
    "image-classification": Head((Output(kind=BY_PROBLEM_TYPE),), ("classifier",), pooling="classification"),
    "token-classification": Head((Output(per_token=True),), ("token_classifier",), pooling="token_transform"),
    "question-answering": Head(tuple(_SPANS), ("qa_outputs",), pooling="token_transform"),
    "multiple-choice": Head(
        (Output(over="choices"),),
        ("choice_classifier",),
        pooling="multiple_choice",
        has_choices=True,
        mask_per_query=False,
    ),
    "next-sentence-prediction": Head((Output(over="pair"),), ("next_sentence",), pooling="pooler"),
    "pretraining": Head(
        (replace(_MASKED_WORDS, logits="prediction_logits"),),
        ("lm_head", "sentence_pair"),
        pooling="pooler",
        sentence_pair=True,
    ),
    "replaced-token-detection": Head(
        (Output(kind="bernoulli", over="pair", per_token=True, counts_attended=True, distills_attended=True),),
        ("discriminator",),
        mask_per_query=False,
    ),
}
"""All heads, in the order in which tables list them."""

PRETRAINING = ("pretraining", "replaced-token-detection", "masked-lm", "causal-lm", "seq2seq-lm")
"""Heads that families are pretrained with; a family's own is its first one here."""


def outputs_of(head: str, config: TransformerConfig) -> tuple[Output, ...]:
    """Return the outputs of a model's head that have labels; none for the base model."""
    return HEADS[head].outputs_of(config)


def targets_of(head: str, config: TransformerConfig) -> dict[str, str]:
    """Return the names of a head's labels, and of the output each of them trains."""
    return {output.labels: output.logits for output in outputs_of(head, config)}


def check_label_smoothing(head: str, config: TransformerConfig, label_smoothing: float) -> None:
    """Raise InputError unless labels can be smoothed: the loss of the head is a cross-entropy over classes."""
    for output in outputs_of(head, config) if label_smoothing else ():
        if output.kind_for(config) not in ("softmax", "span"):
            raise InputError(
                f"label_smoothing is {label_smoothing} but the loss of this {head} model is not over classes; set it to 0"
            )


def standard_batch(ops: Ops, head: str, config: TransformerConfig, batch: Batch) -> dict[str, Any]:
    """Return a batch with its labels, and weights of shape [B, 1], in the form that losses take; see :mod:`duonlp.labels`.

    Args:
        ops: Array operations of the framework.
        head: Head of the model.
        config: Configuration of the model.
        batch: Inputs, labels and ``sample_weight``; may be traced.

    Raises:
        InputError: The head's loss does not take labels of this form.
    """
    outputs = [output for output in outputs_of(head, config) if batch.get(output.labels) is not None]
    batch = {**batch, **{o.labels: standard_labels(ops, o, config, batch[o.labels]) for o in outputs}}
    weights = batch.get(WEIGHTS)
    if isinstance(weights, Mapping):
        batch[WEIGHTS] = {name: _flatten_column(ops, values) for name, values in weights.items()}
    elif weights is not None:
        batch[WEIGHTS] = _flatten_column(ops, weights)
    return batch


def _flatten_column(ops: Ops, weights: Array) -> Array:
    """Return weights [B, 1] as float32 [B], and other arrays unchanged."""
    shape, dtype = static_shape(WEIGHTS, weights), dtype_of(weights)
    is_column = shape is not None and shape[1:] == (1,) and dtype is not None and is_number(dtype)
    return ops.reshape(ops.cast(weights, "float32"), (-1,)) if is_column else weights


def loss_terms(
    ops: Ops,
    losses: ModuleType,
    head: str,
    config: TransformerConfig,
    outputs: Mapping[str, Any],
    batch: Batch,
    label_smoothing: float = 0.0,
) -> dict[str, tuple[Array, Array]]:
    """Return the terms of a head's own loss before division, so that they add up over microbatches, devices and hosts.

    Args:
        ops: ``tfnlp.ops`` or ``jaxnlp.ops``.
        losses: ``tfnlp.losses`` or ``jaxnlp.losses``.
        head: Head of the model.
        config: Configuration of the model.
        outputs: Outputs of the model for the inputs in `batch`.
        batch: The head's labels, in any form of :mod:`duonlp.labels`; ``attention_mask`` where the head counts attended
            tokens; optionally ``sample_weight`` [B] (or of the labels' shape, or a dict of these by output), which
            multiplies the sums and leaves the counts unchanged, and :data:`ROW_MASK`.
        label_smoothing: Label smoothing of every cross-entropy over classes.

    Returns:
        {output: (sum, count)}, float32 [] each; the loss is the total of sum / count. Counts depend on the labels only.

    Raises:
        InputError: `label_smoothing` is not 0 and the loss is not a cross-entropy over classes; or labels or weights have
            another form.
    """
    terms, batch = {}, standard_batch(ops, head, config, batch)
    for output in outputs_of(head, config):
        labels, weight = batch[output.labels], batch.get(WEIGHTS)
        weight = output.align(standard_weights(ops, output, labels, weight))
        labels, logits = output.align(labels), output.align(outputs[output.logits], True)
        kind = output.kind_for(config, labels)
        check_against_logits(output, kind, labels, logits)
        if kind == "span":
            labels = ops.maximum(labels, 0)
        mask = _counted(ops, output, kind, labels, ops.size(logits, 1) if kind == "span" else None, batch)
        if kind in ("softmax", "span"):
            labels = labels if mask is None else ops.where(mask, labels, IGNORED)
            total, count = losses.cross_entropy_sum(logits, labels, weight, label_smoothing)
        else:
            check_label_smoothing(head, config, label_smoothing)
            function = losses.squared_error_sum if kind == "regression" else losses.binary_cross_entropy_sum
            total, count = function(logits, labels, mask, weight)
        terms[output.logits] = total * output.share, count
    return terms


def _counted(ops: Ops, output: Output, kind: str, labels: Array, length: Array | None, batch: Batch) -> Array | None:
    """Return which of an output's aligned labels count, a mask of their shape; None for all.

    Positions from `length` on, those beyond the sequence, are ignored. Regression targets have no ignored value.
    """
    mask, rows = None, batch.get(ROW_MASK)
    if output.counts_attended:
        mask = batch.get("attention_mask")
    elif kind == "span":
        mask = labels < length
    elif kind != "regression":
        mask = labels != IGNORED
    if rows is None:
        return mask
    rows = ops.expand_dims(ops.cast(rows, "bool"), tuple(range(1, len(labels.shape))))
    return rows if mask is None else ops.cast(mask, "bool") & rows


def counts_labels(head: str, config: TransformerConfig, batch: Batch) -> bool:
    """Return whether any label of a batch of NumPy arrays counts in :func:`loss_terms`; True if it has none to ask."""
    batch, masks = standard_batch(numpy_ops, head, config, batch), []
    for output in outputs_of(head, config):
        if batch.get(output.labels) is not None:
            labels = output.align(batch[output.labels])
            kind, length = output.kind_for(config, labels), np.shape(batch[config.inputs[0].name])[-1]
            masks.append(_counted(numpy_ops, output, kind, labels, length, batch))
    return not masks or any(mask is None or np.any(mask) for mask in masks)


def are_class_ids(labels: Array) -> bool:
    """Return whether labels, an array of any framework, are integers or bool."""
    return is_integral(dtype_of(labels if hasattr(labels, "dtype") else np.asarray(labels)))
