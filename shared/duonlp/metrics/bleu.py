"""BLEU (Papineni et al., "BLEU: a Method for Automatic Evaluation of Machine Translation", ACL 2002), by sacrebleu."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from duonlp.errors import InputError, MissingExtraError
from duonlp.metrics.base import Metric, missing_library_error
from duonlp.metrics.bootstrap import Score


class BleuScore(Score):
    """BLEU with its interval and its parts, named as sacrebleu and ``evaluate`` name them.

    Attributes:
        counts: Matched n-grams of each order, list of int; with smoothing by "add-k", k is added, as in sacrebleu.
        totals: N-grams of each order in the predictions, likewise.
        precisions: Smoothed precision of each order in percent, list of float.
        bp: Brevity penalty in [0, 1].
        sys_len: Number of tokens in the predictions.
        ref_len: Number of tokens in the references, of each example in the one of the closest length.
    """

    counts: list[float]
    totals: list[float]
    precisions: list[float]
    bp: float
    sys_len: int
    ref_len: int

    @property
    def parts(self) -> dict[str, Any]:
        """The parts by name, for JSON."""
        return dict(self.__dict__)


class Bleu(Metric):
    """Corpus BLEU between 0 and 100, equal to sacrebleu's (Post, "A Call for Clarity in Reporting BLEU Scores", 2018).

    BLEU is not a mean over examples: n-grams are counted over the whole corpus. The statistics of an example are therefore
    its counts, and intervals come from resampled counts, as in Koehn (EMNLP 2004).

    References are grouped by example: `references[i]` holds the text or texts for `predictions[i]`. (sacrebleu's functions
    take the transpose, one stream per reference.)

    ``compute()["bleu"]`` is a :class:`BleuScore`, which has the counts, precisions, brevity penalty and lengths too.

    Args:
        lowercase: Whether to ignore case.
        tokenize: One of sacrebleu's tokenizers: "13a" (the default of WMT), "intl", "zh", "char", "none", ... Some need
            packages of their own, or download a model.
        smooth_method: Smoothing of n-gram orders without a match: "exp", "floor", "add-k" or "none".
        smooth_value: Value for "floor" and "add-k"; None for sacrebleu's default.
        max_ngram_order: Maximum n-gram length.
        effective_order: Whether to drop n-gram orders that the texts are too short for.

    Raises:
        InputError: The tokenizer or smoothing is unknown, or the order is below 1.
        MissingExtraError: sacrebleu, or a package that the tokenizer needs, is not installed.
    """

    kinds = ("bleu",)
    highest = 100.0

    def __init__(
        self,
        lowercase: bool = False,
        tokenize: str = "13a",
        smooth_method: str = "exp",
        smooth_value: float | None = None,
        max_ngram_order: int = 4,
        effective_order: bool = False,
    ):
        try:
            from sacrebleu.metrics import BLEU
        except ImportError as error:
            raise missing_library_error("sacrebleu") from error
        counting = {"lowercase": lowercase, "tokenize": tokenize, "max_ngram_order": max_ngram_order}
        smoothing = {"smooth_method": smooth_method, "smooth_value": smooth_value}
        super().__init__(**counting, **smoothing, effective_order=effective_order)
        for name, value, allowed in (
            ("tokenize", tokenize, BLEU.TOKENIZERS),
            ("smooth_method", smooth_method, BLEU.SMOOTH_DEFAULTS),
        ):
            if value not in allowed:
                raise InputError(f"{name} is {value!r}; it must be one of {', '.join(allowed)}")
        if isinstance(max_ngram_order, bool) or not isinstance(max_ngram_order, int) or max_ngram_order < 1:
            raise InputError(f"max_ngram_order is {max_ngram_order!r}; it must be a positive integer")
        try:
            self.scorer = BLEU(**counting, **smoothing, effective_order=effective_order)
            # Counts single examples, unsmoothed. force suppresses the warning about tokenized texts, meant for corpora.
            self.counter = BLEU(**counting, smooth_method="none", effective_order=True, force=True)
        except (ImportError, RuntimeError) as error:  # the tokenizer's own package is missing
            raise MissingExtraError(f"sacrebleu's tokenizer {tokenize!r} is not available: {error}") from error
        self.reference_counts: set[int] = set()

    def example_statistics(self, prediction: str, references: Sequence[str]) -> list[float]:
        """Return the lengths of prediction and closest reference, then matches and totals of each order: [2 + 2 orders]."""
        self.reference_counts.add(len(references))
        counts = self.counter.sentence_score(prediction, references)
        return [counts.sys_len, counts.ref_len, *counts.counts, *counts.totals]

    def scores(self, sums: np.ndarray, examples: int) -> dict[str, np.ndarray]:
        """Return the corpus BLEU of each row of counts, {"bleu": float64 [r]}."""
        return {"bleu": self._bleu(sums, self.options["effective_order"])}

    def compute(self, confidence: float = 0.95, resamples: int = 1000, seed: int = 0) -> dict[str, Score]:
        """Return {"bleu": BleuScore}; see :meth:`Metric.compute`."""
        score = BleuScore(*super().compute(confidence, resamples, seed)["bleu"])
        score.__dict__.update(self.parts)
        return {"bleu": score}

    @property
    def parts(self) -> dict[str, Any]:
        """Parts of the corpus BLEU by name, as :class:`BleuScore` documents them."""
        (row,) = np.rint(self.statistics.sum(axis=0, keepdims=True)).astype(np.int64).tolist()
        score = self._bleu_of(row, self.options["effective_order"])
        lengths = {"bp": float(score.bp), "sys_len": int(score.sys_len), "ref_len": int(score.ref_len)}
        ngrams = {"counts": list(score.counts), "totals": list(score.totals)}  # smoothed by "add-k", as in sacrebleu
        return {**ngrams, "precisions": list(map(float, score.precisions)), **lengths}

    def _bleu(self, sums: np.ndarray, effective_order: bool) -> np.ndarray:
        rows = np.rint(sums).astype(np.int64).tolist()
        return np.array([self._bleu_of(row, effective_order).score for row in rows], np.float64)

    def _bleu_of(self, row: list[int], effective_order: bool) -> Any:
        """Return sacrebleu's BLEUScore of one row of counts."""
        order = self.options["max_ngram_order"]
        return self.scorer.compute_bleu(
            row[2 : 2 + order], row[2 + order :], row[0], row[1], effective_order=effective_order,
            smooth_method=self.options["smooth_method"], smooth_value=self.options["smooth_value"], max_ngram_order=order,
        )  # fmt: skip

    @property
    def per_example(self) -> dict[str, np.ndarray]:
        """{"bleu": float64 [examples]}, BLEU of each example on its own, as sacrebleu's `sentence_bleu`.

        Orders that an example is too short for are dropped. The corpus BLEU is not the mean of these.
        """
        return {"bleu": self._bleu(self.statistics, True)}

    @property
    def signature(self) -> str:
        """sacrebleu's signature, such as "nrefs:1|case:mixed|eff:no|tok:13a|smooth:exp|version:2.6.0"."""
        if self.reference_counts:
            counts = self.reference_counts
            self.scorer.num_refs = next(iter(counts)) if len(counts) == 1 else -1  # -1: varying
        else:
            self.statistics  # noqa: B018  (raises InputError: there are no examples)
        return str(self.scorer.get_signature())
