"""ROUGE (Lin, "ROUGE: A Package for Automatic Evaluation of Summaries", 2004), computed by rouge-score."""

import importlib.metadata
import re
import warnings
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import numpy as np

from duonlp.errors import InputError
from duonlp.metrics.base import Metric, missing

KINDS = ("rouge1", "rouge2", "rougeL", "rougeLsum")
KIND = re.compile(r"rouge([1-9]|L|Lsum)")
WORD = re.compile("[a-z0-9]")
"""All that rouge-score's own tokenizer keeps."""

STEMS = 1 << 17
"""Words whose stems are kept; stemming is most of the time it takes."""


class Rouge(Metric):
    """ROUGE's F1, the mean over examples, between 0 and 1: the numbers of rouge-score.

    Of several references, the one with the best F1 counts, for each kind by itself, as in rouge-score's `score_multi`.

    rougeL takes a text as one sequence. rougeLsum (the ROUGE-L of papers about summarization) compares sentence with
    sentence, and rouge-score takes *lines* for sentences: on texts without line breaks it is the same as rougeL. Texts
    whose sentences are not on lines of their own need ``sentences="en"``.

    Args:
        kinds: of rouge1 to rouge9 (n-grams), rougeL and rougeLsum.
        stemmer: compare Porter's stems of words, as papers mostly do.
        sentences: a language code such as "en": a sentence splitter for it puts every sentence of predictions and
            references on a line of its own (see :func:`duonlp.util.split_sentences`). None takes the lines as they
            are. Only rougeLsum sees a difference.
        tokenizer: an object with ``tokenize(text) -> list[str]``. rouge-score's own keeps the letters a-z and digits
            alone, so that a text in another script has no words; it takes another tokenizer to compare these.

    Raises:
        InputError: an unknown kind, none, or one twice.
        MissingExtraError: rouge-score, or the sentence splitter asked for, is not installed.
    """

    highest = 1.0

    def __init__(
        self, kinds: Sequence[str] = KINDS, stemmer: bool = True, sentences: str | None = None, tokenizer: Any = None
    ):
        kinds = (kinds,) if isinstance(kinds, str) else tuple(kinds)
        super().__init__(kinds=kinds, stemmer=stemmer, sentences=sentences, tokenizer=tokenizer)
        unknown = [kind for kind in kinds if not isinstance(kind, str) or not KIND.fullmatch(kind)]
        if unknown or not kinds or len(set(kinds)) < len(kinds):
            raise InputError(
                f"kinds are {kinds!r}; give each once, of rouge1 to rouge9, rougeL and rougeLsum"
                + (f" ({unknown[0]!r} is none of these)" if unknown else "")
            )
        if tokenizer is not None and not callable(getattr(tokenizer, "tokenize", None)):
            raise InputError(f"tokenizer is {tokenizer!r}; it must have a method tokenize(text) -> list[str]")
        try:
            from rouge_score.rouge_scorer import RougeScorer
        except ImportError as error:
            raise missing("rouge-score") from error
        self.kinds = kinds
        self.scorer = RougeScorer(list(kinds), tokenizer=tokenizer or Words(stemmer))
        self.split = sentences is not None and "rougeLsum" in kinds
        if self.split:
            on_lines("", sentences)  # a splitter that is missing is an error now, not after the model has written

    def example_statistics(self, prediction: str, references: Sequence[str]) -> list[float]:
        """F1 of each kind."""
        if self.options["tokenizer"] is None and not any(WORD.search(text.lower()) for text in references):
            warnings.warn(
                f"the reference {references[0][:40]!r} has no word for ROUGE, which keeps a-z and 0-9 alone, so it scores "
                "0; give Rouge a tokenizer for this language",
                stacklevel=4,
            )
        if self.split:
            language = self.options["sentences"]
            prediction, references = on_lines(prediction, language), [on_lines(text, language) for text in references]
        best = self.scorer.score_multi(references, prediction)
        return [best[kind].fmeasure for kind in self.kinds]

    def scores(self, sums: np.ndarray, examples: int) -> dict[str, np.ndarray]:
        """The mean of the examples' F1."""
        return {kind: sums[:, column] / examples for column, kind in enumerate(self.kinds)}

    @property
    def per_example(self) -> dict[str, np.ndarray]:
        """{kind: float64 [examples]}, the F1 of each example."""
        return dict(zip(self.kinds, self.statistics.T, strict=True))

    @property
    def signature(self) -> str:
        """Such as "rouge-score 0.1.2, F1, Porter stemmer, sentences: en"."""
        tokenizer = self.options["tokenizer"]
        words = type(tokenizer).__name__ if tokenizer else "Porter stemmer" if self.options["stemmer"] else "no stemmer"
        sentences = self.options["sentences"] or "lines"
        return f"rouge-score {importlib.metadata.version('rouge-score')}, F1, {words}, sentences: {sentences}"


class Words:
    """rouge-score's own tokenizer, which stems a word once rather than wherever it stands."""

    def __init__(self, stemmer: bool):
        from nltk.stem import porter
        from rouge_score.tokenize import tokenize

        self.split = tokenize
        self.stemmer = self if stemmer else None
        self.stem = lru_cache(STEMS)(porter.PorterStemmer().stem)

    def tokenize(self, text: str) -> list[str]:
        """Words of the text in lower case, or their stems."""
        return self.split(text, self.stemmer)


@lru_cache(1 << 14)
def on_lines(text: str, language: str = "en") -> str:
    """The text with each sentence on a line of its own.

    A line break that is there ends a sentence too, unless the lines are prose broken at a width.

    Raises:
        InputError: the splitter has no such language.
        MissingExtraError: the splitter is not installed.
    """
    from duonlp.util.sentences import split_sentences

    whole = text.encode(
        "utf-8", "replace"
    ).decode()  # a splitter refuses half of a surrogate pair, and ROUGE ignores it
    return "\n".join(split_sentences(whole, language))
