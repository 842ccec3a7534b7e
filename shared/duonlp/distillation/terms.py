"""The parts of a distillation's loss, for both frameworks: which outputs are compared, over what, and with which factor."""

from collections.abc import Mapping
from types import ModuleType
from typing import Any

from duonlp.distillation.pair import are_class_ids, distilled_outputs, head_kind, projection_name, term_names
from duonlp.distillation.settings import Attentions, Distillation, HiddenStates
from duonlp.errors import InputError
from duonlp.inputs import IGNORED, NO_POSITION

NOTHING = -1e9
"""The logit of a token that cannot be an answer."""


def distillation_terms(
    ops: ModuleType,
    losses: ModuleType,
    distillation: Distillation,
    student,
    teacher,
    student_outputs: Mapping[str, Any],
    teacher_outputs: Mapping[str, Any],
    batch: Mapping[str, Any],
    *,
    projections: Mapping[str, Mapping[str, Any]] | None = None,
    label_order=None,
    sample_weight=None,
) -> dict[str, tuple]:
    """What ``{jaxnlp,tfnlp}.distillation_losses.terms`` does, which see.

    Args:
        ops, losses: the framework's array operations and its module of distillation losses.
    """
    kind = head_kind(student.head, student.config, batch.get("labels"))
    names = iter(term_names(distillation, student.head, student.config, kind))
    terms = {}
    for output in distilled_outputs(student.head, student.config) if distillation.alpha < 1 else ():
        pair = _logits(student_outputs, output.logits, "student"), _logits(teacher_outputs, output.logits, "teacher")
        if label_order is not None:
            pair = pair[0], losses.in_order(pair[1], label_order)
        mask, weights = _logits_mask(ops, distillation, student.head, output, batch), sample_weight
        if student.head == "causal-lm":
            pair = tuple(logits[:, :-1] for logits in pair)
            weights = weights[:, 1:] if weights is not None and len(weights.shape) == 2 else weights
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
        mask = _token_mask(ops, student, batch)
        layers = student.config.as_decoder().num_layers, teacher.config.as_decoder().num_layers
        models = (student, student_outputs), (teacher, teacher_outputs)
        for loss, name in zip(distillation.losses, names):
            each = [
                function(*pair, *options, mask, sample_weight)
                for function, pair, options in _compared(losses, loss, loss.pairs(*layers), models, projections)
            ]
            terms[name] = sum(total for total, _ in each) / len(each), each[0][1], loss.weight
    return terms


def _compared(losses: ModuleType, loss, pairs, models, projections):
    """Yields (function, (the student's, the teacher's), what else it takes) of a loss of what is inside the models."""
    (student, student_outputs), (teacher, teacher_outputs) = models
    if isinstance(loss, HiddenStates):
        function = losses.hidden_mse_sum if loss.kind == "mse" else losses.hidden_cosine_sum
        states = _inside(student, student_outputs, "hidden_states"), _inside(teacher, teacher_outputs, "hidden_states")
        for i, j in pairs:
            mine = states[0][i]
            if student.config.hidden_size != teacher.config.hidden_size:
                mine = losses.projected(mine, _projection(projections, projection_name(i)))
            yield function, (mine, states[1][j]), ()
    elif isinstance(loss, Attentions):
        function = losses.attention_kl_sum if loss.kind == "kl" else losses.attention_mse_sum
        maps = _inside(student, student_outputs, "attentions"), _inside(teacher, teacher_outputs, "attentions")
        for i, j in pairs:
            yield function, (maps[0][i], maps[1][j]), ()
    else:
        heads = teacher.config.attention.num_heads if loss.heads is None else loss.heads
        states = _inside(student, student_outputs, "hidden_states"), _inside(teacher, teacher_outputs, "hidden_states")
        for i, j in pairs:
            mine = losses.queries_keys_values(student, states[0], i)
            others = losses.queries_keys_values(teacher, states[1], j)
            for name in loss.of:
                yield losses.relation_kl_sum, (mine[name], others[name]), (heads,)


def _projection(projections, name: str):
    if not projections or name not in projections:
        raise InputError(
            f"the widths differ, and there is no projection {name!r}; take those that duonlp.distillation.init_projections makes"
        )
    return projections[name]["kernel"]


def _logits(outputs, name: str, whose: str):
    if name not in outputs:
        raise InputError(f"the {whose} gives no {name}, only {', '.join(outputs)}; take a head that does")
    return outputs[name]


def _inside(model, outputs, name: str):
    """Hidden states or attentions of a model; of an encoder-decoder, its decoder's."""
    name = name if model.config.decoder is None else f"decoder_{name}"
    if name not in outputs:
        raise InputError(f"the outputs have no {name}; call the model with output_{name.removeprefix('decoder_')}=True")
    return outputs[name]


def _without_padding(ops: ModuleType, logits, attention_mask):
    """Start or end logits [B, T] in which padding can be no answer, however much of it there is."""
    return ops.where(ops.cast(attention_mask, "bool"), ops.cast(logits, "float32"), NOTHING)


def _logits_mask(ops: ModuleType, distillation: Distillation, head: str, output, batch):
    """Which of an output's distributions count: [B], [B, T], [B, 1], or None for all. It depends on masks alone."""
    labels = batch.get(output.labels)
    if not output.per_token:
        return _rows(ops, labels)
    if distillation.positions is not None:
        attended = distillation.positions == "attended"
    else:
        attended = head in ("masked-lm", "pretraining", "replaced-token-detection") or labels is None
    if not attended and labels is None:
        raise InputError(
            f"positions is 'labelled' and there are no {output.labels}; add them to the batches, or take 'attended'"
        )
    mask = _attended(ops, head, batch) if attended else labels != IGNORED
    if head == "causal-lm" and mask is not None:
        mask = mask[:, 1:]  # logits are of the token that follows
    return _of_rows(ops, mask, _rows(ops, labels))


def _token_mask(ops: ModuleType, student, batch):
    """[B, T], [B, 1] or None: tokens whose hidden states, attentions and relations count."""
    outputs = distilled_outputs(student.head, student.config)
    rows = _rows(ops, batch.get(outputs[0].labels)) if outputs else None
    return _of_rows(ops, _attended(ops, student.head, batch), rows)


def _rows(ops: ModuleType, labels):
    """[B]: rows with a label; one without only fills a batch up. None: all, for a number is never set aside."""
    if labels is None or (len(labels.shape) == 1 and not are_class_ids(labels)):
        return None
    labelled = (labels != IGNORED) & (labels != NO_POSITION)
    return labelled if len(labels.shape) == 1 else ops.any(labelled, axis=1)


def _of_rows(ops: ModuleType, mask, rows):
    if rows is None:
        return mask
    rows = ops.expand_dims(rows, 1)
    return rows if mask is None else ops.cast(mask, "bool") & rows


def _attended(ops: ModuleType, head: str, batch):
    """[B, T]: tokens that are no padding; of an encoder-decoder, its decoder's. None: all."""
    labels = batch.get("labels")
    if batch.get("decoder_attention_mask") is not None:
        return batch["decoder_attention_mask"]
    if head == "seq2seq-lm":
        return None if labels is None else labels != IGNORED
    if batch.get("decoder_input_ids") is not None:
        return None
    mask = batch.get("attention_mask")
    return mask if mask is None or len(mask.shape) == 2 else ops.any(ops.cast(mask, "bool"), axis=-1)
