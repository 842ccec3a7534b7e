"""A teacher and its student: which of their outputs are compared, and whether the two are compatible.

The settings of duonlp.distillation.settings can also be imported from here.
"""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from duonlp.config import AttentionConfig, TransformerConfig
from duonlp.distillation.settings import Attentions, Distillation, HiddenStates, Relations, uniform_map
from duonlp.errors import InputError
from duonlp.heads import BY_PROBLEM_TYPE, HEADS, outputs_of
from duonlp.typing import Array

__all__ = (
    "Attentions", "Distillation", "HiddenStates", "Relations", "check_pair", "head_kind", "init_projections",
    "projection_name", "term_names", "uniform_map",
)  # fmt: skip


def head_kind(head: str, config: TransformerConfig, labels: Array = None) -> str | None:
    """Return the kind of a head's logits, which determines how they are compared (see duonlp.heads.Output.kind_for).

    Args:
        head: Head of the model.
        config: Configuration of the model.
        labels: Labels of a batch, or None.

    Returns:
        "softmax", "bernoulli" (several labels may apply), "regression", "span", or None for the base model.
    """
    return next((output.kind_for(config, labels) for output in outputs_of(head, config)), None)


def term_names(distillation: Distillation, head: str, config: TransformerConfig, kind: str | None) -> tuple[str, ...]:
    """Return the names of the loss terms that involve the teacher, in order.

    Args:
        distillation: Settings of the distillation.
        head: Head of the student.
        config: Configuration of the student.
        kind: Result of :func:`head_kind`.
    """
    suffix = {"bernoulli": "bernoulli_kl", "regression": "mse"}.get(str(kind), "kl")
    outputs = outputs_of(head, config) if distillation.alpha < 1 else ()
    return *(f"{output.logits}_{suffix}" for output in outputs), *distillation.loss_names


def projection_name(state: int) -> str:
    """Return the name of the projection of a student's hidden state."""
    return f"state_{state}"


def init_projections(
    distillation: Distillation, student_config: TransformerConfig, teacher_config: TransformerConfig, seed: int = 0
) -> dict[str, dict[str, np.ndarray]]:
    """Initialize the projections of the student's hidden states to the teacher's width, identically in both frameworks.

    Args:
        distillation: Settings of the distillation.
        student_config: Configuration of the student, of width D.
        teacher_config: Configuration of the teacher, of width D'.
        seed: Seed for the values.

    Returns:
        {"state_i": {"kernel": float32 [D, D']}} for each compared student state; empty if the widths are equal.
    """
    width, teacher_width = student_config.hidden_size, teacher_config.hidden_size
    layers = student_config.as_decoder().num_layers, teacher_config.as_decoder().num_layers
    losses = [loss for loss in distillation.losses if isinstance(loss, HiddenStates)]
    states = sorted({student for loss in losses for student, _ in loss.pairs(*layers)})
    if width == teacher_width:
        return {}
    values = {state: np.random.default_rng([seed, state]).normal(size=(width, teacher_width)) for state in states}
    return {
        projection_name(state): {"kernel": (x / math.sqrt(width)).astype(np.float32)} for state, x in values.items()
    }


_MOST_SHOWN = 5


def check_pair(
    student_config: TransformerConfig,
    teacher_config: TransformerConfig,
    student_tokenizer: Any = None,
    teacher_tokenizer: Any = None,
    *,
    distillation: Distillation,
    heads: tuple[str, str],
    own_inputs: bool = False,
) -> np.ndarray | None:
    """Check that a student can learn from a teacher and return the mapping of its labels.

    Args:
        student_config: Configuration of the student.
        teacher_config: Configuration of the teacher.
        student_tokenizer: Tokenizer of the student's inputs; None if unknown, in which case vocabulary sizes are compared.
        teacher_tokenizer: Tokenizer of the teacher.
        distillation: Settings of the distillation.
        heads: ``model.head`` of the student and of the teacher.
        own_inputs: Whether batches hold separate inputs for the teacher (``teacher_input_ids``) from its own tokenizer. Tokens
            then do not correspond, and only outputs per text can be compared.

    Returns:
        int32 [C], the index of each of the student's labels in the teacher's logits (``teacher_logits[..., order]``); None if
        the order is the same.

    Raises:
        InputError: The two differ in heads, labels, vocabularies, layers or attention heads that must match.
    """
    head, teacher_head = heads
    compares_logits = distillation.alpha < 1 and bool(outputs_of(head, student_config))
    if not compares_logits and not distillation.losses:
        reason = f"alpha is {distillation.alpha}" if distillation.alpha == 1 else f"a {head} model has no logits"
        raise InputError(
            f"nothing is learned from the teacher: {reason} and losses is empty; add a loss or lower alpha"
        )
    if compares_logits and head != teacher_head:
        raise InputError(
            f"the student's head is {head} and the teacher's is {teacher_head}; use models with the same head, or alpha=1 with "
            "losses on hidden states or attention"
        )
    if compares_logits and outputs_of(head, student_config) != outputs_of(head, teacher_config):
        names = (", ".join(o.logits for o in outputs_of(head, c)) for c in (student_config, teacher_config))
        raise InputError("the student's outputs are {} and the teacher's are {}; they must be the same".format(*names))
    order = (
        label_order(student_config, teacher_config) if compares_logits and _names_labels(head, student_config) else None
    )
    if compares_logits:
        _check_problem_types(student_config, teacher_config, head)
    _check_inner_losses(student_config, teacher_config, distillation, head)
    if compares_logits and any(o.over == "vocabulary" for o in outputs_of(head, student_config)):
        _check_vocabulary_sizes(student_config, teacher_config)
    difference = _tokenizer_difference(student_config, teacher_config, student_tokenizer, teacher_tokenizer, own_inputs)
    if difference is not None:
        _check_tokens_not_compared(difference, distillation, head, own_inputs, compares_logits)
    return order


def check_block_labels(head: str) -> None:
    """Raise InputError for a student that shifts labels itself, before it is trained on blocks, whose labels are shifted."""
    if HEADS[head].causal:
        raise InputError(
            f"the labels of blocks are shifted already, and a {head} student shifts them itself; distill on batches whose labels "
            "are their input_ids"
        )


def label_order(student: TransformerConfig, teacher: TransformerConfig) -> np.ndarray | None:
    """Return the index of each of the student's labels in the teacher's logits, int32 [C]; None if the order is the same.

    Raises:
        InputError: The label names differ, or are not unique.
    """
    if student.labels == teacher.labels:
        return None
    if sorted(student.labels) != sorted(teacher.labels):
        only_student, only_teacher = (
            _only_in(labels, others)
            for labels, others in ((student.labels, teacher.labels), (teacher.labels, student.labels))
        )
        raise InputError(
            f"the labels differ: the student has {len(student.labels)}{only_student} and the teacher "
            f"{len(teacher.labels)}{only_teacher}; give both models the same label names (id2label in config.json), in any order"
        )
    if len(set(student.labels)) < len(student.labels):
        raise InputError(
            "several labels have the same name, so their order is ambiguous; give each label a unique name"
        )
    return np.array([teacher.label2id[label] for label in student.labels], np.int32)


def _only_in(labels: Sequence[str], others: Sequence[str]) -> str:
    """Return a parenthesis with the labels that are not among the others; "" if there are none."""
    only = [label for label in labels if label not in set(others)]
    if not only:
        return ""
    more = ", ..." if len(only) > _MOST_SHOWN else ""
    return f" ({', '.join(only[:_MOST_SHOWN])}{more} only there)"


def _names_labels(head: str, config: TransformerConfig) -> bool:
    """Return whether a head's logits are over the labels that the configuration names."""
    return any(output.over == "labels" and output.kind != "regression" for output in outputs_of(head, config))


def _check_problem_types(student: TransformerConfig, teacher: TransformerConfig, head: str) -> None:
    types = student.problem_type, teacher.problem_type
    by_type = any(output.kind == BY_PROBLEM_TYPE for output in outputs_of(head, student))
    if by_type and None not in types and types[0] != types[1]:
        raise InputError(
            f"the student's problem_type is {types[0]} and the teacher's is {types[1]}; set the student's to the teacher's"
        )


def _check_inner_losses(
    student: TransformerConfig, teacher: TransformerConfig, distillation: Distillation, head: str
) -> None:
    """Check that the compared layers exist and their attention heads and widths are compatible."""
    if distillation.losses and HEADS[head].has_choices:
        raise InputError(
            "losses on hidden states and attention are not supported for multiple choice; leave out `losses`"
        )
    if distillation.losses and (student.decoder is None) != (teacher.decoder is None):
        raise InputError("one of the models is an encoder-decoder and the other is not; leave out `losses`")
    student_stack, teacher_stack = student.as_decoder(), teacher.as_decoder()
    for loss in distillation.losses:
        pairs = loss.pairs(student_stack.num_layers, teacher_stack.num_layers)
        if isinstance(loss, HiddenStates):
            continue
        if isinstance(loss, Relations) and student.decoder is not None:
            raise InputError(
                f"a relations loss does not support encoder-decoders such as {student.model_type}; use hidden_states or "
                "attentions"
            )
        for i, j in pairs:
            attentions = student_stack.layers[i].attention, teacher_stack.layers[j].attention
            num_heads = attentions[0].num_heads, attentions[1].num_heads
            if isinstance(loss, Relations):
                _check_relation_heads(loss, *attentions)
            elif num_heads[0] != num_heads[1]:
                raise InputError(
                    f"the student has {num_heads[0]} attention heads and the teacher {num_heads[1]}, so their attentions "
                    "cannot be compared; use a relations loss, which works with any number of heads"
                )


def relation_heads(loss: Relations, teacher: AttentionConfig) -> int:
    """Return the number of relation heads of a loss: as set, or the teacher's attention heads."""
    return teacher.num_heads if loss.heads is None else loss.heads


def _check_relation_heads(loss: Relations, student: AttentionConfig, teacher: AttentionConfig) -> None:
    heads = relation_heads(loss, teacher)
    for whose, config in (("student", student), ("teacher", teacher)):
        for width in {config.size if name == "query" else config.kv_size for name in loss.of}:
            if width % heads:
                raise InputError(
                    f"{heads} relation heads do not divide the {whose}'s width of {width}; set heads of the "
                    "relations loss to a number that divides both widths"
                )


def _check_vocabulary_sizes(student: TransformerConfig, teacher: TransformerConfig) -> None:
    sizes = student.as_decoder().embedding.vocab_size, teacher.as_decoder().embedding.vocab_size
    if sizes[0] != sizes[1]:
        raise InputError(
            f"the student's logits are over {sizes[0]} tokens and the teacher's over {sizes[1]}; use models with the same "
            "vocabulary"
        )


def _tokenizer_difference(
    student: TransformerConfig,
    teacher: TransformerConfig,
    student_tokenizer: Any,
    teacher_tokenizer: Any,
    own_inputs: bool,
) -> str | None:
    """Describe how the tokens of student and teacher differ; None if they are the same."""
    if student_tokenizer is not None and teacher_tokenizer is not None:
        return _vocabulary_difference(student_tokenizer, teacher_tokenizer)
    if own_inputs:
        return "the teacher has its own inputs, and without both tokenizers its tokens may not match the student's"
    if student.embedding.vocab_size != teacher.embedding.vocab_size:
        return (
            f"the student's vocabulary has {student.embedding.vocab_size} tokens and the teacher's has "
            f"{teacher.embedding.vocab_size}"
        )
    return None


def _check_tokens_not_compared(
    difference: str, distillation: Distillation, head: str, own_inputs: bool, compares_logits: bool
) -> None:
    """Raise InputError if the teacher cannot read its inputs, or outputs per token are compared across tokenizers."""
    if not own_inputs:
        raise InputError(
            f"the tokenizers differ: {difference}; add the teacher's own inputs to the batches (teacher_input_ids, "
            "teacher_attention_mask), or use a student with the teacher's tokenizer"
        )
    per_token = any(output.per_token or output.kind == "span" for output in HEADS[head].outputs)
    if (compares_logits and per_token) or distillation.losses:
        raise InputError(
            f"the tokenizers differ: {difference}; only outputs per text can then be compared, so leave out `losses` and use "
            f"another head than {head if per_token else 'one with outputs per token'}"
        )


def _vocabulary_difference(student_tokenizer: Any, teacher_tokenizer: Any) -> str | None:
    """Describe how two vocabularies differ; None if they are the same.

    The way texts are split may differ: the teacher reads the student's ids, so only their meaning matters.
    """
    own, others = student_tokenizer.get_vocab(), teacher_tokenizer.get_vocab()
    if own == others:
        return None
    tokens = sorted((i, token) for token, i in own.items() if others.get(token) != i)
    if not tokens:
        return f"the teacher's vocabulary has {len(others) - len(own)} more tokens"
    i, token = tokens[0]
    return (
        f"{len(tokens)} of the student's {len(own)} tokens have another id in the teacher's vocabulary, such as {token!r}: {i} "
        f"and {others.get(token, 'none')}"
    )
