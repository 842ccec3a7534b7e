"""Loss terms of distillation for both frameworks: which outputs are compared, over which tokens, with which factor."""

from collections.abc import Callable, Iterator, Mapping
from types import ModuleType
from typing import Any

import numpy as np

from duonlp import numpy_ops
from duonlp.config import TransformerConfig
from duonlp.distillation.pair import head_kind, projection_name, relation_heads, term_names
from duonlp.distillation.settings import Attentions, Distillation, HiddenStates, InnerLoss, Pairs
from duonlp.errors import InputError
from duonlp.heads import HEADS, IGNORED, NO_POSITION, ROW_MASK, Output, are_class_ids, counts_labels, outputs_of
from duonlp.typing import Array, Batch, Ops

MASKED_LOGIT = -1e9
"""Start and end logit of padding, which cannot be part of an answer."""


def distillation_terms(
    ops: Ops,
    losses: ModuleType,
    distillation: Distillation,
    student: Any,
    teacher: Any,
    student_outputs: Mapping[str, Any],
    teacher_outputs: Mapping[str, Any],
    batch: Batch,
    *,
    projections: Mapping[str, Mapping[str, Array]] | None = None,
    label_order: Array = None,
    sample_weight: Array = None,
) -> dict[str, tuple[Array, Array, float]]:
    """Return the terms that the teacher adds to the loss of a batch, in the order of :func:`term_names`.

    The student's own loss on the labels, times alpha, is not among them.

    Args:
        ops: Array operations of the framework.
        losses: Module of distillation losses of the framework, such as ``jaxnlp.distillation.losses``.
        distillation: Settings of the distillation.
        student: The student model.
        teacher: The teacher model. It is only read for ``distillation.losses``, so it may be None with precomputed logits.
        student_outputs: Outputs of the student, with ``hidden_states`` and ``attentions`` if the settings need them
            (``needs_hidden_states``, ``needs_attentions``).
        teacher_outputs: Outputs of the teacher, likewise.
        batch: Inputs of the student and labels, which determine the tokens and rows that count.
        projections: As from :func:`init_projections`, if the widths differ.
        label_order: As from :func:`check_pair`.
        sample_weight: [B], or [B, T] where every token has an output; or a dict of these by the names of labels or outputs.

    Returns:
        {name: (sum, count, factor)}; the loss is the total of factor * sum / count. A loss over several pairs of layers sums
        to the mean over the pairs, so its factor is its weight.

    Raises:
        InputError: An output, a projection or labels that the settings need are missing.
    """
    kind = head_kind(student.head, student.config, batch.get("labels"))
    names = iter(term_names(distillation, student.head, student.config, kind))
    terms = {}
    for output in outputs_of(student.head, student.config) if distillation.alpha < 1 else ():
        pair = _logits(student_outputs, output.logits, "student"), _logits(teacher_outputs, output.logits, "teacher")
        pair = tuple(output.align(logits, is_logits=True) for logits in pair)
        if label_order is not None:
            pair = pair[0], losses.reorder_labels(pair[1], label_order)
        mask, weights = _logits_mask(ops, distillation, student.head, output, batch), sample_weight
        if isinstance(weights, Mapping):
            weights = weights.get(output.labels, weights.get(output.logits))
        weights = output.align(weights)
        if kind == "span" and batch.get("attention_mask") is not None:
            pair = tuple(_without_padding(ops, logits, batch["attention_mask"]) for logits in pair)
        factor = (1 - distillation.alpha) * output.share
        if kind == "regression":
            total, count = losses.squared_error_sum(*pair, mask, weights)
        else:
            function = losses.bernoulli_kl_divergence_sum if kind == "bernoulli" else losses.kl_divergence_sum
            total, count = function(*pair, distillation.temperature, mask, weights)
            factor *= distillation.temperature**2
        terms[next(names)] = total, count, factor
    if distillation.losses:
        mask = _token_mask(ops, student.head, student.config, batch)
        if isinstance(sample_weight, Mapping):  # by output, of which a text's hidden states have the mean
            sample_weight = sum(sample_weight.values()) / len(sample_weight)
        layers = student.config.as_decoder().num_layers, teacher.config.as_decoder().num_layers
        models = (student, student_outputs), (teacher, teacher_outputs)
        for loss, name in zip(distillation.losses, names):
            sums = [
                function(*pair, *options, mask, sample_weight)
                for function, pair, options in _compared_states(losses, loss, loss.pairs(*layers), models, projections)
            ]
            terms[name] = sum(total for total, _ in sums) / len(sums), sums[0][1], loss.weight
    return terms


def distillation_counts(distillation: Distillation, head: str, config: TransformerConfig, batch: Batch) -> bool:
    """Return whether anything of a batch of NumPy arrays counts in the loss of a student with this head.

    Raises:
        InputError: Labels that the settings need are missing.
    """
    if distillation.alpha and counts_labels(head, config, batch):
        return True
    outputs = outputs_of(head, config) if distillation.alpha < 1 else ()
    masks = [_logits_mask(numpy_ops, distillation, head, output, batch) for output in outputs]
    masks += [_token_mask(numpy_ops, head, config, batch)] if distillation.losses else []
    return any(mask is None or np.any(mask) for mask in masks)


def _compared_states(
    losses: ModuleType,
    loss: InnerLoss,
    pairs: Pairs,
    models: Any,
    projections: Mapping[str, Mapping[str, Array]] | None,
) -> Iterator[tuple[Callable[..., tuple[Array, Array]], tuple[Array, Array], tuple[Any, ...]]]:
    """Yield (loss function, (student's values, teacher's values), further arguments) of an inner loss.

    Args:
        losses: Module of distillation losses of the framework.
        loss: The loss.
        pairs: (student, teacher) pairs of states or layers.
        models: (model, outputs) of the student and of the teacher.
        projections: Projections of the student's hidden states.
    """
    (student, student_outputs), (teacher, teacher_outputs) = models
    if isinstance(loss, HiddenStates):
        function = losses.hidden_mse_sum if loss.kind == "mse" else losses.hidden_cosine_sum
        states = (
            _inner_outputs(student, student_outputs, "hidden_states"),
            _inner_outputs(teacher, teacher_outputs, "hidden_states"),
        )
        for i, j in pairs:
            student_state = states[0][i]  # [B, T, D]
            if student.config.hidden_size != teacher.config.hidden_size:
                kernel = _projection(projections, projection_name(i))
                student_state = losses.project(student_state, kernel)  # [B, T, D of the teacher]
            yield function, (student_state, states[1][j]), ()
    elif isinstance(loss, Attentions):
        function = losses.attention_kl_sum if loss.kind == "kl" else losses.attention_mse_sum
        maps = (
            _inner_outputs(student, student_outputs, "attentions"),
            _inner_outputs(teacher, teacher_outputs, "attentions"),
        )
        for i, j in pairs:
            yield function, (maps[0][i], maps[1][j]), ()
    else:
        states = (
            _inner_outputs(student, student_outputs, "hidden_states"),
            _inner_outputs(teacher, teacher_outputs, "hidden_states"),
        )
        for i, j in pairs:
            student_vectors = losses.queries_keys_values(student, states[0], i)
            teacher_vectors = losses.queries_keys_values(teacher, states[1], j)
            for name in loss.of:
                heads = relation_heads(loss, teacher.config.layers[j].attention)
                yield losses.relation_kl_sum, (student_vectors[name], teacher_vectors[name]), (heads,)


def _projection(projections: Mapping[str, Mapping[str, Array]] | None, name: str) -> Array:
    if not projections or name not in projections:
        raise InputError(
            f"the widths differ and the projection {name!r} is missing; pass those of duonlp.distillation.init_projections"
        )
    return projections[name]["kernel"]


def _logits(outputs: Mapping[str, Any], name: str, whose: str) -> Array:
    if name not in outputs:
        raise InputError(f"the {whose} has no output {name}, only {', '.join(outputs)}; use a head that has it")
    return outputs[name]


def _inner_outputs(model: Any, outputs: Mapping[str, Any], name: str) -> Any:
    """Return the hidden states or attentions of a model; those of the decoder in an encoder-decoder."""
    name = name if model.config.decoder is None else f"decoder_{name}"
    if name not in outputs:
        raise InputError(f"the outputs have no {name}; call the model with output_{name.removeprefix('decoder_')}=True")
    return outputs[name]


def _without_padding(ops: Ops, logits: Array, attention_mask: Array) -> Array:
    """Mask the start or end logits [B, T] of padding, so that the amount of padding does not matter."""
    return ops.where(ops.cast(attention_mask, "bool"), ops.cast(logits, "float32"), MASKED_LOGIT)


def _logits_mask(ops: Ops, distillation: Distillation, head: str, output: Output, batch: Batch) -> Array | None:
    """Return which distributions of an output count: [B], [B, T], [B, 1], or None for all."""
    labels = batch.get(output.labels)
    rows = _labelled_rows(ops, labels, batch)
    if not output.per_token:
        return rows
    if distillation.positions is not None:
        attended = distillation.positions == "attended"
    else:
        attended = output.distills_attended or labels is None
    if not attended and labels is None:
        raise InputError(
            f"positions is 'labelled' but the batch has no {output.labels}; add them, or set positions to 'attended'"
        )
    mask: Any = _attended_tokens(ops, head, batch) if attended else labels != IGNORED
    return _limited_to_rows(ops, output.align(mask), rows)


def _token_mask(ops: Ops, head: str, config: TransformerConfig, batch: Batch) -> Array | None:
    """Return the tokens whose hidden states, attentions and relations count: [B, T], [B, 1], or None for all."""
    outputs = outputs_of(head, config)
    rows = _labelled_rows(ops, batch.get(outputs[0].labels) if outputs else None, batch)
    return _limited_to_rows(ops, _attended_tokens(ops, head, batch), rows)


def _labelled_rows(ops: Ops, labels: Array | None, batch: Batch) -> Array | None:
    """Return the rows with a label, bool [B], since rows without one are padding; None for all rows.

    Regression targets have no ignored value, so all rows of the batch's row mask count.
    """
    rows = None if batch.get(ROW_MASK) is None else ops.cast(batch[ROW_MASK], "bool")
    if labels is None or (len(labels.shape) == 1 and not are_class_ids(labels)):
        return rows
    labelled = (labels != IGNORED) & (labels != NO_POSITION)
    labelled = labelled if len(labels.shape) == 1 else ops.any(labelled, axis=1)
    return labelled if rows is None else labelled & rows


def _limited_to_rows(ops: Ops, mask: Array | None, rows: Array | None) -> Array | None:
    """Return a token mask [B, T] (None for all) limited to some rows [B] (None for all)."""
    if rows is None:
        return mask
    rows = ops.expand_dims(rows, 1)  # [B, 1]
    return rows if mask is None else ops.cast(mask, "bool") & rows


def _attended_tokens(ops: Ops, head: str, batch: Batch) -> Array | None:
    """Return the tokens that are not padding (in an encoder-decoder, those of the decoder): [B, T], or None for all."""
    labels = batch.get("labels")
    if batch.get("decoder_attention_mask") is not None:
        return batch["decoder_attention_mask"]
    if HEADS[head].shifts_labels:
        return None if labels is None else labels != IGNORED
    if batch.get("decoder_input_ids") is not None:
        return None
    mask = batch.get("attention_mask")
    return mask if mask is None or len(mask.shape) == 2 else ops.any(ops.cast(mask, "bool"), axis=-1)
