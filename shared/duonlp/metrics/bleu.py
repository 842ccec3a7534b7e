"""BLEU (Papineni et al., "BLEU: a Method for Automatic Evaluation of Machine Translation", ACL 2002), by sacrebleu."""

from collections.abc import Sequence

import numpy as np

from duonlp.errors import InputError, MissingExtraError
from duonlp.metrics.base import Metric, missing


class Bleu(Metric):
    """Corpus BLEU between 0 and 100: the numbers of sacrebleu (Post, "A Call for Clarity in Reporting BLEU Scores", 2018).

    n-grams are counted over all examples before they become a score, so BLEU is no mean over examples; what is kept of an
    example are its counts, and intervals come from resampled counts, as Koehn (EMNLP 2004) has it.

    References are grouped by example, `references[i]` being the text or texts for `predictions[i]`. (sacrebleu's own
    functions take them the other way round, as one stream for each reference.)

    Args:
        lowercase: do not tell case apart.
        tokenize: one of sacrebleu's tokenizers: "13a" (the default of WMT), "intl", "zh", "char", "none", ... Some need
            packages of their own, or fetch a model.
        smooth_method: of n-gram orders without a match: "exp", "floor", "add-k" or "none".
        smooth_value: for "floor" and "add-k"; None for sacrebleu's default.
        max_ngram_order: the longest n-grams.
        effective_order: leave orders out that the texts are too short for.

    Raises:
        InputError: an unknown tokenizer or smoothing, or an order below 1.
        MissingExtraError: sacrebleu, or what the tokenizer needs, is not installed.
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
            raise missing("sacrebleu") from error
        given = {"lowercase": lowercase, "tokenize": tokenize, "max_ngram_order": max_ngram_order}
        smoothing = {"smooth_method": smooth_method, "smooth_value": smooth_value}
        super().__init__(**given, **smoothing, effective_order=effective_order)
        for name, value, allowed in (
            ("tokenize", tokenize, BLEU.TOKENIZERS),
            ("smooth_method", smooth_method, BLEU.SMOOTH_DEFAULTS),
        ):
            if value not in allowed:
                raise InputError(f"{name} is {value!r}; it must be one of {', '.join(allowed)}")
        if isinstance(max_ngram_order, bool) or not isinstance(max_ngram_order, int) or max_ngram_order < 1:
            raise InputError(f"max_ngram_order is {max_ngram_order!r}; it must be a whole number from 1 on")
        try:
            self.scorer = BLEU(**given, **smoothing, effective_order=effective_order)
            # Its score of one example shows the counts, which smoothing would change. The warning that texts look
            # tokenized already is for a corpus, not for one example.
            self.counter = BLEU(**given, smooth_method="none", effective_order=True, force=True)
        except (ImportError, RuntimeError) as error:  # a tokenizer's own package
            raise MissingExtraError(f"sacrebleu's tokenizer {tokenize!r} cannot be used here: {error}") from error
        self.numbers: set[int] = set()  # of references, that examples have

    def example_statistics(self, prediction: str, references: Sequence[str]) -> list[float]:
        """Lengths of the prediction and of the nearest reference, then matches and totals of each order: [2 + 2 orders]."""
        self.numbers.add(len(references))
        found = self.counter.sentence_score(prediction, references)
        return [found.sys_len, found.ref_len, *found.counts, *found.totals]

    def scores(self, sums: np.ndarray, examples: int) -> dict[str, np.ndarray]:
        """Corpus BLEU of each row of counts."""
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
        """{"bleu": float64 [examples]}, BLEU of each example by itself, as sacrebleu's `sentence_bleu`.

        Orders that an example is too short for are left out. The corpus' BLEU is not the mean of these.
        """
        return {"bleu": self._bleu(self.statistics, True)}

    @property
    def signature(self) -> str:
        """sacrebleu's own, such as "nrefs:1|case:mixed|eff:no|tok:13a|smooth:exp|version:2.6.0"."""
        if self.numbers:
            self.scorer.num_refs = next(iter(self.numbers)) if len(self.numbers) == 1 else -1  # -1: it varies
        else:
            self.statistics  # noqa: B018  (raises: there is no example yet)
        return str(self.scorer.get_signature())
