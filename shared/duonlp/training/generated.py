"""What a model writes to validation sources, scored: evaluation by generation, in the course of a training or after it."""

import copy
import itertools
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from duonlp.errors import InputError
from duonlp.inputs import IGNORED

Score = Callable[[Sequence[str], Sequence[str]], Mapping[str, float]]


class GenerationScorer:
    """Generates for each source of validation batches, and scores the texts against the references.

    ``scorer(model)`` gives the scores as floats by name, and "generated_length", the mean number of tokens a text has. The
    model is one of either package with the seq2seq-lm head; what it wrote is in ``predictions``, and the other texts in
    ``references``, in the order of the batches.

    Args:
        batches: duonlp.data.PairBatches, whose references are used, all of an example; or anything to iterate over again
            and again that gives dicts of input_ids, attention_mask and labels, int [B, S] and [B, T], and then the references
            are what the labels say, decoded. Rows without a label only fill a batch up, and are left out.
        tokenizer: of the model.
        metric: ``(predictions, references) -> {name: number}``, or a metric of duonlp.metrics, such as Rouge(). A reference is
            a text, or a list where an example has several.
        most_batches: only the first ones are read; None for all.
        options: of ``model.generate``: num_beams=4, max_new_tokens=64, ...

    Raises:
        InputError: options that give several texts a source.
    """

    def __init__(self, batches, tokenizer, metric, *, most_batches: int | None = None, **options: Any):
        if options.get("num_return_sequences", 1) != 1:
            raise InputError(
                f"num_return_sequences is {options['num_return_sequences']}; a score wants one text a source"
            )
        self.batches, self.tokenizer, self.most_batches, self.options = batches, tokenizer, most_batches, options
        self._score = metric if callable(metric) else scores_of(metric)
        self.predictions: list[str] = []
        self.references: list[str | list[str]] = []

    def __call__(self, model) -> dict[str, float]:
        """The scores of a model as it is.

        Raises:
            InputError: another head, no batches, or scores that are no numbers.
        """
        return self._scores_over(model, self.most_batches)

    def try_out(self, model) -> dict[str, float]:
        """The same over the first batch alone: what is wrong is wrong before the first step, not after an epoch."""
        return self._scores_over(model, 1)

    def _scores_over(self, model, most: int | None) -> dict[str, float]:
        if getattr(model, "head", None) != "seq2seq-lm":
            raise InputError(
                f"a {getattr(model, 'head', type(model).__name__)} model does not write to a source; evaluate a seq2seq-lm"
            )
        predictions, references, lengths = [], [], []
        texts, order = self._texts()
        for number, batch in enumerate(itertools.islice(one_pass(self.batches), most)):
            labels = np.asarray(batch["labels"])
            ids = np.asarray(model.generate(batch["input_ids"], batch.get("attention_mask"), **self.options))
            real = (labels != IGNORED).any(axis=1)
            ids, labels = ids[real], labels[real]
            lengths += np.sum(ids[:, 1:] != self.tokenizer.pad_token_id, axis=1).tolist()
            predictions += self._decoded(ids)
            if texts is None:
                references += self._decoded(np.where(labels == IGNORED, self.tokenizer.pad_token_id, labels))
            else:
                found = (texts[row] for row in order[number] if row >= 0)
                references += [several[0] if len(several) == 1 else list(several) for several in found]
        if not predictions:
            raise InputError("there are no validation batches to generate for; give some")
        self.predictions, self.references = predictions, references
        scores = {}
        for name, value in self._score(predictions, references).items():
            try:
                scores[name] = float(value)
            except (TypeError, ValueError):
                raise InputError(f"the metric gave {name}={value!r}; it must give a number") from None
        return {**scores, "generated_length": float(np.mean(lengths))}

    def _texts(self):
        """The references of the batches' own, and which of them each row has; (None, None) where there are none."""
        if not hasattr(self.batches, "order"):
            return None, None
        try:
            return self.batches.references, self.batches.order(0)
        except InputError:  # they were not kept
            return None, None

    def _decoded(self, ids) -> list[str]:
        return [text.strip() for text in self.tokenizer.batch_decode(ids, skip_special_tokens=True)]


def scores_of(metric) -> Score:
    """A metric of duonlp.metrics as a function of predictions and references; each call begins with no examples.

    Raises:
        InputError: it has no add and compute.
    """
    if not (hasattr(metric, "add") and hasattr(metric, "compute")):
        raise InputError(
            f"metric is a {type(metric).__name__}; give a function of (predictions, references), or one of duonlp.metrics"
        )

    def score(predictions, references):
        own = metric.fresh() if hasattr(metric, "fresh") else copy.deepcopy(metric)
        own.add(predictions, references)
        return {name: score.value for name, score in own.compute(resamples=0).items()}

    return score


def one_pass(batches, epoch: int = 0) -> Iterable[Mapping[str, np.ndarray]]:
    """The batches of an epoch: of ``batches.epoch(n)``, or of whatever is iterated over."""
    return batches.epoch(epoch) if hasattr(batches, "epoch") else batches
