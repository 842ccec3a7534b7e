"""BLEU (Papineni et al., "BLEU: a Method for Automatic Evaluation of Machine Translation", ACL 2002), by sacrebleu."""

from collections.abc import Sequence

import numpy as np

from duonlp.errors import InputError, MissingExtraError
from duonlp.metrics.base import Metric, missing_library_error


class Bleu(Metric):
    """Corpus BLEU between 0 and 100, equal to sacrebleu's (Post, "A Call for Clarity in Reporting BLEU Scores", 2018).

    BLEU is not a mean over examples: n-grams are counted over the whole corpus. The statistics of an example are therefore
    its counts, and intervals come from resampled counts, as in Koehn (EMNLP 2004).

    References are grouped by example: `references[i]` holds the text or texts for `predictions[i]`. (sacrebleu's functions
    take the transpose, one stream per reference.)

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

    def _bleu(self, sums: np.ndarray, effective_order: bool) -> np.ndarray:
        order = self.options["max_ngram_order"]
        return np.array([
            self.scorer.compute_bleu(
                row[2 : 2 + order], row[2 + order :], row[0], row[1], effective_order=effective_order,
                smooth_method=self.options["smooth_method"], smooth_value=self.options["smooth_value"],
                max_ngram_order=order,
            ).score
            for row in np.rint(sums).astype(np.int64).tolist()
        ], np.float64)  # fmt: skip

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
