"""Unsupervised data augmentation: the same answer for a text without a label and for its augmented copy.

Xie et al. 2020, https://arxiv.org/abs/1904.12848; the loss is that of the authors' code,
https://github.com/google-research/uda/blob/master/text/uda.py.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import ModuleType

import numpy as np

from duonlp.config import TransformerConfig
from duonlp.errors import InputError
from duonlp.heads import IGNORED, ROW_MASK, Output, outputs_of, standard_batch
from duonlp.inputs import main_input
from duonlp.labels import WEIGHTS
from duonlp.training.objectives.objective import Group, Objective, Terms
from duonlp.typing import Array, Batch, Ops

ORIGINAL, AUGMENTED = "original_", "augmented_"
"""Prefixes of the inputs of the unlabeled texts and of their copies."""

THRESHOLD = "tsa_threshold"
"""Entry of a batch, float32 [B]: labels that the model gives a greater probability do not count, see tsa_threshold."""

SCHEDULES = ("linear", "log", "exp")
"""Schedules of training signal annealing: with few labels for a hard task "exp", with many for an easy one "log"."""

TSA_SCALE = 5.0


def tsa_threshold(schedule: str | None, progress: float, outcomes: int) -> float:
    """Return the threshold of training signal annealing, from 1 / outcomes to 1; section 2.3 of the paper.

    Args:
        schedule: One of SCHEDULES, or None for 1, with which every label counts.
        progress: Share of the training that is done, in [0, 1].
        outcomes: Number of classes of a text, or 2 where each label is there or not.

    Raises:
        InputError: The schedule is unknown.
    """
    if schedule is None:
        return 1.0
    if schedule not in SCHEDULES:
        raise InputError(f"tsa is {schedule!r}; it must be one of {', '.join(SCHEDULES)}, or None")
    share = {
        "linear": progress,
        "log": 1 - math.exp(-progress * TSA_SCALE),
        "exp": math.exp((progress - 1) * TSA_SCALE),
    }[schedule]
    return share * (1 - 1 / outcomes) + 1 / outcomes


@dataclass(frozen=True)
class ConsistencyLoss(Objective):
    """Cross-entropy of labeled texts, and the divergence of the predictions on unlabeled texts and their copies.

    A batch has ``input_ids`` [B, T], ... and ``labels`` of B labeled texts; ``original_input_ids`` [B, R, T], ... of R unlabeled
    texts beside each, and ``augmented_input_ids``, ... of one copy of each of these; ``tsa_threshold`` [B] where `tsa` is set.
    The terms are

    - "supervised", the mean of the cross-entropies of the labels whose probability is at most the threshold;
    - "consistency", the mean over the unlabeled texts of KL(p || q). p is the softmax of the original's logits divided by the
      temperature, without a gradient, and q the prediction on the copy. Texts whose largest probability, without the
      temperature, is not above `confidence` have a loss of 0, but are counted.

    The authors have labels of one class per text. With several labels per text, each label is a question of its own with two
    answers: threshold, sharpening, confidence and divergence are those of the Bernoulli distribution of each label, and the
    means are over texts and labels, as that of the head's own loss.

    Attributes:
        weight: Factor of the consistency.
        temperature: Temperature that sharpens the predictions on the original texts; 1 leaves them as they are.
        confidence: Probability above which a prediction is learned from, in [0, 1); 0 is for all.
        tsa: Whether batches have thresholds of training signal annealing. Then a step must be one program over one batch.

    Raises:
        InputError: A setting is out of range.
    """

    groups = (Group(), Group(ORIGINAL, several=True, gradient=False), Group(AUGMENTED, several=True))

    weight: float = 1.0
    temperature: float = 1.0
    confidence: float = 0.0
    tsa: bool = False

    def __post_init__(self) -> None:
        for name in ("weight", "temperature"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value < math.inf:
                raise InputError(f"{name} is {value!r}; it must be a number above 0")
        value = self.confidence
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value < 1:
            raise InputError(f"confidence is {value!r}; it must be a probability of at least 0 and below 1")

    @property
    def counts_depend_on_outputs(self) -> bool:
        """Whether the model's own probabilities say which labels count."""
        return self.tsa

    def terms(
        self,
        ops: Ops,
        losses: ModuleType,
        head: str,
        config: TransformerConfig,
        outputs: Sequence[Mapping[str, Array]],
        batch: Batch,
        parameters: Mapping[str, Array],
    ) -> Terms:
        """Return the supervised and the unsupervised term; see :meth:`Objective.terms`."""
        (output,), batch = outputs_of(head, config), standard_batch(ops, head, config, batch)
        logits, original, augmented = (ops.cast(result[output.logits], "float32") for result in outputs)
        labels = batch[output.labels]
        is_softmax = output.kind_for(config, labels) == "softmax"
        total, count = self._supervised(ops, losses, is_softmax, logits, labels, batch)

        rows = batch[ROW_MASK] if ROW_MASK in batch else ops.arange(ops.size(logits, 0)) >= 0
        per_row = ops.size(batch[AUGMENTED + main_input(config)], 1)
        counts = ops.repeat(ops.cast(rows, "float32"), per_row, axis=0)  # [B x R]
        divergence = divergences(ops, original, augmented, self.temperature, self.confidence, is_softmax)
        unsupervised = ops.sum(divergence * counts), ops.sum(counts)
        return {"supervised": (total, count, 1.0), "consistency": (*unsupervised, self.weight)}

    def _supervised(
        self, ops: Ops, losses: ModuleType, is_softmax: bool, logits: Array, labels: Array, batch: Batch
    ) -> tuple[Array, Array]:
        """Return the sum and the count of the cross-entropies of labels that count, of logits [B, C]."""
        is_real = labels != IGNORED  # [B], or [B, C] for several labels per text
        if ROW_MASK in batch:
            rows = ops.cast(batch[ROW_MASK], "bool")
            is_real = is_real & (rows if is_softmax else ops.expand_dims(rows, 1))
        if self.tsa:
            known = ops.stop_gradient(probabilities_of_labels(ops, logits, labels, is_softmax))
            threshold = ops.cast(batch[THRESHOLD], "float32")
            is_real = is_real & (known <= (threshold if is_softmax else ops.expand_dims(threshold, 1)))
        weights = batch.get(WEIGHTS)
        if is_softmax:
            return losses.cross_entropy_sum(logits, ops.where(is_real, labels, IGNORED), weights)
        return losses.binary_cross_entropy_sum(logits, labels, is_real, weights)

    def check_model(self, head: str, config: TransformerConfig) -> None:
        """Raise InputError unless the model has one output that classifies texts."""
        outputs = outputs_of(head, config)
        if len(outputs) != 1 or not _classifies(outputs[0], config):
            raise InputError(
                f"a {head} model does not classify texts, so that ConsistencyLoss cannot train it; load it with "
                "AutoModelForSequenceClassification, and not for regression"
            )

    def check(self, head: str, config: TransformerConfig, batch: Batch) -> None:
        """Raise InputError unless a batch of NumPy arrays has labels, the inputs of all groups and, with tsa, thresholds."""
        (output,) = outputs_of(head, config)
        needed = (output.labels, *((THRESHOLD,) if self.tsa else ()))
        if missing := [name for name in needed if name not in batch]:
            raise InputError(f"the batch has {', '.join(batch) or 'no arrays'}; ConsistencyLoss needs {missing[0]}")
        super().check(head, config, batch)
        shapes = [np.shape(batch[prefix + main_input(config)])[:2] for prefix in (ORIGINAL, AUGMENTED)]
        if shapes[0] != shapes[1] or shapes[0][0] != len(batch[output.labels]):
            raise InputError(
                f"the batch has {len(batch[output.labels])} rows of labels, original texts [B, R] {list(shapes[0])} and copies "
                f"{list(shapes[1])}; each row needs R original texts and a copy of each"
            )


def _classifies(output: Output, config: TransformerConfig) -> bool:
    return output.over == "labels" and not output.per_token and output.kind_for(config) in ("softmax", "bernoulli")


def probabilities_of_labels(ops: Ops, logits: Array, labels: Array, is_softmax: bool) -> Array:
    """Return the probability that logits [B, C] give to the labels.

    Args:
        ops: Array operations of the framework.
        logits: float32 [B, C].
        labels: Classes, int [B]; or, for labels on their own, 1 for each label of a text, [B, C].
        is_softmax: Whether each text has one class.

    Returns:
        float32 [B], or [B, C] for labels on their own: the probability that the label is there, or that it isn't.
    """
    if is_softmax:
        index = ops.expand_dims(ops.maximum(labels, 0), 1)
        return ops.exp(ops.take_along(ops.log_softmax(logits), index, 1)[:, 0])
    there, absent = _log_sigmoids(ops, logits)
    return ops.exp(ops.where(labels > 0.5, there, absent))


def divergences(
    ops: Ops, original: Array, augmented: Array, temperature: float, confidence: float, is_softmax: bool
) -> Array:
    """Return KL(sharpened prediction on the original || prediction on the copy) of each text, float32 [n].

    Args:
        ops: Array operations of the framework.
        original: Logits of the original texts, float32 [n, C].
        augmented: Logits of their copies, likewise.
        temperature: Divisor of the original's logits.
        confidence: Probability above which a prediction counts; others have a divergence of 0.
        is_softmax: Whether each text has one class. Otherwise the result is the mean over the labels, each a Bernoulli.
    """
    if is_softmax:
        target, predicted = ops.log_softmax(original / temperature), ops.log_softmax(augmented)
        divergence = ops.sum(ops.exp(target) * (target - predicted), axis=-1)
        largest = ops.max(ops.exp(ops.log_softmax(original)), axis=-1)
        return divergence * ops.cast(largest > confidence, "float32")
    answers = zip(_log_sigmoids(ops, original / temperature), _log_sigmoids(ops, augmented))
    divergence = sum(ops.exp(target) * (target - predicted) for target, predicted in answers)  # [n, C]
    largest = ops.exp(ops.maximum(*_log_sigmoids(ops, original)))
    masked = divergence * ops.cast(largest > confidence, "float32")
    return ops.sum(masked, axis=-1) / ops.size(masked, 1)


def _log_sigmoids(ops: Ops, logits: Array) -> tuple[Array, Array]:
    """Return the logarithms of sigmoid(logits) and of 1 - sigmoid(logits)."""
    rest = ops.log(1.0 + ops.exp(-ops.abs(logits)))
    return ops.minimum(logits, 0.0) - rest, ops.minimum(-logits, 0.0) - rest
