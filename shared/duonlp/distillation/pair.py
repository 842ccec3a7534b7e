"""A teacher and its student: what of the two is compared, and whether they go together at all.

The settings, ``Distillation`` and its losses, are those of duonlp.distillation.settings, and can be imported from here.
"""

import math
from dataclasses import dataclass

import numpy as np

from duonlp.config import TransformerConfig
from duonlp.distillation.settings import Attentions, Distillation, HiddenStates, Relations, uniform_map
from duonlp.errors import InputError

__all__ = (
    "Attentions", "Distillation", "HiddenStates", "Output", "Relations", "are_class_ids", "check_pair",
    "distilled_outputs", "head_kind", "init_projections", "projection_name", "term_names", "uniform_map",
)  # fmt: skip


@dataclass(frozen=True)
class Output:
    """An output of a model that is held against the teacher's: its name, and that of the labels that go with it."""

    logits: str
    labels: str = "labels"
    per_token: bool = False
    """Whether every token has one of its own."""
    share: float = 1.0
    """Of it in the loss."""


_SENTENCE = {
    "next_sentence": Output("seq_relationship_logits", "next_sentence_label"),
    "sentence_order": Output("sop_logits", "sentence_order_label"),
}
_PER_TOKEN = ("masked-lm", "causal-lm", "seq2seq-lm", "token-classification", "replaced-token-detection")


def distilled_outputs(head: str, config: TransformerConfig) -> tuple[Output, ...]:
    """The outputs of a head that a teacher's are compared with; none of the base model."""
    if head == "base":
        return ()
    if head == "question-answering":
        return Output("start_logits", "start_positions", share=0.5), Output("end_logits", "end_positions", share=0.5)
    if head == "pretraining":
        return Output("prediction_logits", per_token=True), _SENTENCE[config.sentence_head]
    return (Output("logits", per_token=head in _PER_TOKEN),)


def head_kind(head: str, config: TransformerConfig, labels=None) -> str | None:
    """What the logits of a head are, which decides how they are compared.

    Args:
        labels: an array, or None where nothing is labelled; of a sequence classifier without a problem_type, whole numbers
            mean one class a text and others several, as in its own loss.

    Returns:
        "softmax", "bernoulli" (several labels may hold), "regression", "span", or None for the base model.
    """
    if head == "base":
        return None
    if head == "question-answering":
        return "span"
    if head == "replaced-token-detection":
        return "bernoulli"
    if head != "sequence-classification":
        return "softmax"
    kinds = {"regression": "regression", "multi_label_classification": "bernoulli"}
    if config.problem_type is not None:
        return kinds.get(config.problem_type, "softmax")
    if config.num_labels == 1:
        return "regression"
    return "softmax" if labels is None or are_class_ids(labels) else "bernoulli"


def term_names(distillation: Distillation, head: str, config: TransformerConfig, kind: str | None) -> tuple[str, ...]:
    """The parts of the loss that the teacher is asked for, in order. kind: of head_kind."""
    suffix = {"bernoulli": "bernoulli_kl", "regression": "mse"}.get(kind, "kl")
    outputs = distilled_outputs(head, config) if distillation.alpha < 1 else ()
    return *(f"{output.logits}_{suffix}" for output in outputs), *distillation.loss_names


def projection_name(state: int) -> str:
    """What the projection of a student's state is called."""
    return f"state_{state}"


def init_projections(
    distillation: Distillation, student_config: TransformerConfig, teacher_config: TransformerConfig, seed: int = 0
) -> dict[str, dict[str, np.ndarray]]:
    """What takes the student's hidden states to the teacher's width, before training: the same numbers in both frameworks.

    Returns:
        {"state_i": {"kernel": float32 [D of the student, D of the teacher]}}, one for each student state that is compared;
        empty where the widths are the same.
    """
    width, wanted = student_config.hidden_size, teacher_config.hidden_size
    layers = student_config.as_decoder().num_layers, teacher_config.as_decoder().num_layers
    losses = [each for each in distillation.losses if isinstance(each, HiddenStates)]
    states = sorted({student for each in losses for student, _ in each.pairs(*layers)})
    if width == wanted:
        return {}
    made = {state: np.random.default_rng([seed, state]).normal(size=(width, wanted)) for state in states}
    return {projection_name(state): {"kernel": (x / math.sqrt(width)).astype(np.float32)} for state, x in made.items()}


def are_class_ids(labels) -> bool:
    """Whether labels, an array of any framework, are whole numbers."""
    dtype = np.asarray(labels).dtype if not hasattr(labels, "dtype") else labels.dtype
    return np.dtype(getattr(dtype, "as_numpy_dtype", dtype)).kind in "iu"


_LABELLED = ("sequence-classification", "token-classification")
_WORDS = ("masked-lm", "causal-lm", "seq2seq-lm", "pretraining")
_SHOWN = 5


def check_pair(
    student_config: TransformerConfig,
    teacher_config: TransformerConfig,
    student_tokenizer=None,
    teacher_tokenizer=None,
    *,
    distillation: Distillation,
    heads: tuple[str, str],
    own_inputs: bool = False,
) -> np.ndarray | None:
    """Whether a student can learn from a teacher.

    Args:
        student_tokenizer, teacher_tokenizer: what their ids come from; None: not known, the sizes of the vocabularies tell.
        heads: ``model.head`` of the student and of the teacher.
        own_inputs: whether batches hold inputs for the teacher alone (``teacher_input_ids``), of its own tokenizer. Then
            tokens of the two are not the same, and only outputs of one a text can be compared.

    Returns:
        int32 [C], where in the teacher's logits each of the student's labels is, ``teacher_logits[..., order]``; None where
        they have one order.

    Raises:
        InputError: other heads, labels, vocabularies, layers or attention heads than the other has.
    """
    head, teacher_head = heads
    compares_logits = distillation.alpha < 1 and bool(distilled_outputs(head, student_config))
    if not compares_logits and not distillation.losses:
        why = f"alpha is {distillation.alpha}" if distillation.alpha == 1 else f"a {head} model has no logits"
        raise InputError(f"nothing is learnt from the teacher: {why}, and there are no losses; add one, or lower alpha")
    if compares_logits and head != teacher_head:
        raise InputError(
            f"the student's head is {head} and the teacher's {teacher_head}; take two of a kind, or alpha = 1 with losses of "
            "what is inside"
        )
    if compares_logits and distilled_outputs(head, student_config) != distilled_outputs(head, teacher_config):
        names = (", ".join(o.logits for o in distilled_outputs(head, c)) for c in (student_config, teacher_config))
        raise InputError("the student's outputs are {}, and the teacher's {}; they must be the same".format(*names))
    order = label_order(student_config, teacher_config) if compares_logits and head in _LABELLED else None
    _check_problem(student_config, teacher_config, head if compares_logits else None)
    _check_inside(student_config, teacher_config, distillation, head)
    _check_words(
        student_config, teacher_config, student_tokenizer, teacher_tokenizer, distillation, head, own_inputs, compares_logits
    )  # fmt: skip
    return order


def label_order(student: TransformerConfig, teacher: TransformerConfig) -> np.ndarray | None:
    """Where in the teacher's logits each of the student's labels is, int32 [C]; None where they have one order.

    Raises:
        InputError: the names of the labels are not the same, or several have one name.
    """
    if student.labels == teacher.labels:
        return None
    if sorted(student.labels) != sorted(teacher.labels):
        sides = {"student": (student.labels, teacher.labels), "teacher": (teacher.labels, student.labels)}
        found = [f"{len(mine)} of the {whose}{_alone(mine, others)}" for whose, (mine, others) in sides.items()]
        raise InputError(
            f"the labels are not the same: {' and '.join(found)}; give both models the same label names (id2label of "
            "config.json), in any order"
        )
    if len(set(student.labels)) < len(student.labels):
        raise InputError("several labels have one name, so that their order cannot be told; name each differently")
    return np.array([teacher.label2id[label] for label in student.labels], np.int32)


def _alone(mine, others) -> str:
    alone = [label for label in mine if label not in set(others)]
    if not alone:
        return ""
    more = ", ..." if len(alone) > _SHOWN else ""
    return f" ({', '.join(alone[:_SHOWN])}{more} only there)"


def _check_problem(student: TransformerConfig, teacher: TransformerConfig, head: str | None) -> None:
    kinds = student.problem_type, teacher.problem_type
    if head == "sequence-classification" and None not in kinds and kinds[0] != kinds[1]:
        raise InputError(
            f"the student's problem_type is {kinds[0]} and the teacher's {kinds[1]}; set the student's to the teacher's"
        )


def _check_inside(
    student: TransformerConfig, teacher: TransformerConfig, distillation: Distillation, head: str
) -> None:
    """Whether the layers that are compared are there, and their heads fit."""
    if distillation.losses and head == "multiple-choice":
        raise InputError("losses of what is inside the models are not there for multiple choice; leave out `losses`")
    if distillation.losses and (student.decoder is None) != (teacher.decoder is None):
        raise InputError("one of the models is an encoder-decoder and the other is not; leave out `losses`")
    own, other = student.as_decoder(), teacher.as_decoder()
    for loss in distillation.losses:
        loss.pairs(own.num_layers, other.num_layers)
        numbers = own.attention.num_heads, other.attention.num_heads
        if isinstance(loss, Attentions) and numbers[0] != numbers[1]:
            raise InputError(
                f"the student has {numbers[0]} attention heads and the teacher {numbers[1]}, so that their attentions cannot "
                "be compared; take a relations loss, which works with any number of heads"
            )
        if isinstance(loss, Relations):
            if student.decoder is not None:
                raise InputError(
                    f"a relations loss is not there for encoder-decoders such as {student.model_type}; take hidden_states or "
                    "attentions"
                )
            heads = numbers[1] if loss.heads is None else loss.heads
            for whose, config in (("student", own), ("teacher", other)):
                width = config.attention.num_heads * config.attention.head_dim
                if width % heads:
                    raise InputError(
                        f"{heads} relation heads do not divide the {whose}'s width of {width}; set heads of the relations "
                        "loss to a number that divides both widths"
                    )


def _check_words(
    student, teacher, student_tokenizer, teacher_tokenizer, distillation, head, own_inputs, compares_logits
):
    """Whether both mean the same by an id, or need not."""
    by_token = head in (*_PER_TOKEN, "pretraining", "question-answering")
    sizes = student.as_decoder().embedding.vocab_size, teacher.as_decoder().embedding.vocab_size
    if compares_logits and head in _WORDS and sizes[0] != sizes[1]:
        raise InputError(
            f"the student's logits are over {sizes[0]} words and the teacher's over {sizes[1]}; they must have one vocabulary"
        )
    if student_tokenizer is not None and teacher_tokenizer is not None:
        different = _different_words(student_tokenizer, teacher_tokenizer)
    elif own_inputs:
        different = "the teacher has inputs of its own, and no tokenizers were given to tell that they are cut alike"
    elif student.embedding.vocab_size != teacher.embedding.vocab_size:
        different = (
            f"the student's vocabulary has {student.embedding.vocab_size} words and the teacher's "
            f"{teacher.embedding.vocab_size}"
        )
    else:
        different = None
    if different is None:
        return
    if not own_inputs:
        raise InputError(
            f"the tokenizers differ: {different}; add the teacher's own inputs to the batches (teacher_input_ids, "
            "teacher_attention_mask), or take a student with the teacher's tokenizer"
        )
    if (compares_logits and by_token) or distillation.losses:
        raise InputError(
            f"the tokenizers differ: {different}; then tokens cannot be compared, only one output a text: leave out `losses`, "
            f"and take another head than {head if by_token else 'one with outputs for each token'}"
        )


def _different_words(student_tokenizer, teacher_tokenizer) -> str | None:
    """What differs between two vocabularies, or None. What cuts a text into words may differ: the teacher reads the
    student's ids, so that all that matters is what they stand for."""
    mine, others = student_tokenizer.get_vocab(), teacher_tokenizer.get_vocab()
    if mine == others:
        return None
    words = sorted((i, word) for word, i in mine.items() if others.get(word) != i)
    if not words:
        return f"the teacher's has {len(others) - len(mine)} words more"
    i, word = words[0]
    there = f"{others[word]}" if word in others else "none"
    return f"{len(words)} of the student's {len(mine)} words have another id in the teacher's, such as {word!r}: {i} and {there}"
