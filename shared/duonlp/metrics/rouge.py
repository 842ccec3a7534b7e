"""ROUGE (Lin, "ROUGE: A Package for Automatic Evaluation of Summaries", 2004), computed by rouge-score."""

import importlib.metadata
import re
import warnings
from collections.abc import Sequence
from functools import lru_cache
from typing import Protocol

import numpy as np

from duonlp.errors import InputError
from duonlp.metrics.base import Metric, missing_library_error
from duonlp.util.tokenization import restore_line_breaks

KINDS = ("rouge1", "rouge2", "rougeL", "rougeLsum")
KIND = re.compile(r"rouge([1-9]|L|Lsum)")
WORD = re.compile("[a-z0-9]")
"""Characters that rouge-score's own tokenizer keeps."""

STEM_CACHE_SIZE = 1 << 17
"""Number of words whose stems are cached; stemming takes most of the time."""


class WordTokenizer(Protocol):
    """Splits a text into the words that ROUGE compares."""

    def tokenize(self, text: str) -> list[str]:
        """Return the words of a text."""
        ...


class Rouge(Metric):
    """ROUGE F1 between 0 and 1, averaged over examples; equal to rouge-score's.

    With several references, the one with the best F1 counts, for each kind separately, as in rouge-score's `score_multi`.

    rougeL compares texts as single sequences. rougeLsum (the ROUGE-L of the summarization literature) compares sentences,
    and rouge-score splits sentences at line breaks: on texts without line breaks it equals rougeL. Pass ``sentences="en"``
    if the sentences are not on separate lines. "<n>" in a text is a line break, as PEGASUS writes it.

    Args:
        kinds: Any of rouge1 to rouge9 (n-grams), rougeL and rougeLsum.
        stemmer: Whether to compare Porter stems, as most papers do.
        sentences: Language code, such as "en", of the sentence splitter that puts each sentence of predictions and
            references on its own line (see :func:`duonlp.util.split_sentences`). None keeps the lines as they are. Only
            rougeLsum depends on it.
        tokenizer: Object with ``tokenize(text) -> list[str]``. rouge-score's tokenizer keeps only a-z and digits, so texts
            in other scripts need another one.

    Raises:
        InputError: A kind is unknown or repeated, or there are none.
        MissingExtraError: rouge-score, or the requested sentence splitter, is not installed.
    """

    highest = 1.0

    def __init__(
        self,
        kinds: Sequence[str] = KINDS,
        stemmer: bool = True,
        sentences: str | None = None,
        tokenizer: WordTokenizer | None = None,
    ):
        kinds = (kinds,) if isinstance(kinds, str) else tuple(kinds)
        super().__init__(kinds=kinds, stemmer=stemmer, sentences=sentences, tokenizer=tokenizer)
        unknown = [kind for kind in kinds if not isinstance(kind, str) or not KIND.fullmatch(kind)]
        if unknown or not kinds or len(set(kinds)) < len(kinds):
            raise InputError(
                f"kinds are {kinds!r}; give any of rouge1 to rouge9, rougeL and rougeLsum, each once"
                + (f" ({unknown[0]!r} is not one of them)" if unknown else "")
            )
        if tokenizer is not None and not callable(getattr(tokenizer, "tokenize", None)):
            raise InputError(f"tokenizer is {tokenizer!r}; it must have a method tokenize(text) -> list[str]")
        try:
            from rouge_score.rouge_scorer import RougeScorer
        except ImportError as error:
            raise missing_library_error("rouge-score") from error
        self.kinds = kinds
        self.scorer = RougeScorer(list(kinds), tokenizer=tokenizer or CachedTokenizer(stemmer))
        self.language = sentences if "rougeLsum" in kinds else None
        if self.language is not None:
            one_sentence_per_line("", self.language)  # raise now if the splitter is missing, not after generation

    def example_statistics(self, prediction: str, references: Sequence[str]) -> list[float]:
        """Return the F1 of each kind."""
        if self.options["tokenizer"] is None and not any(WORD.search(text.lower()) for text in references):
            warnings.warn(
                f"the reference {references[0][:40]!r} has no characters that ROUGE's tokenizer keeps (a-z and 0-9), so it "
                "scores 0; give Rouge a tokenizer for this language",
                stacklevel=4,
            )
        prediction, references = restore_line_breaks(prediction), [restore_line_breaks(text) for text in references]
        language = self.language
        if language is not None:
            prediction = one_sentence_per_line(prediction, language)
            references = [one_sentence_per_line(text, language) for text in references]
        best = self.scorer.score_multi(references, prediction)
        return [best[kind].fmeasure for kind in self.kinds]

    def scores(self, sums: np.ndarray, examples: int) -> dict[str, np.ndarray]:
        """Return the mean F1 of the examples, {kind: float64 [r]}."""
        return {kind: sums[:, column] / examples for column, kind in enumerate(self.kinds)}

    @property
    def per_example(self) -> dict[str, np.ndarray]:
        """{kind: float64 [examples]}, the F1 of each example."""
        return dict(zip(self.kinds, self.statistics.T, strict=True))

    @property
    def signature(self) -> str:
        """Library, version and options, such as "rouge-score 0.1.2, F1, Porter stemmer, sentences: en"."""
        tokenizer = self.options["tokenizer"]
        words = type(tokenizer).__name__ if tokenizer else "Porter stemmer" if self.options["stemmer"] else "no stemmer"
        sentences = self.options["sentences"] or "lines"
        return f"rouge-score {importlib.metadata.version('rouge-score')}, F1, {words}, sentences: {sentences}"


class CachedTokenizer:
    """rouge-score's tokenizer with cached stems.

    Args:
        stemmer: Whether to return Porter stems instead of words.
    """

    def __init__(self, stemmer: bool):
        from nltk.stem import porter
        from rouge_score.tokenize import tokenize

        self._tokenize = tokenize
        self._stemmer = self if stemmer else None
        self.stem = lru_cache(STEM_CACHE_SIZE)(porter.PorterStemmer().stem)

    def tokenize(self, text: str) -> list[str]:
        """Return the words of a text in lower case, or their stems."""
        return self._tokenize(text, self._stemmer)


@lru_cache(1 << 14)
def one_sentence_per_line(text: str, language: str = "en") -> str:
    """Return the text with each sentence on a line of its own.

    Existing line breaks end sentences too, unless the text is prose wrapped at a fixed width.

    Raises:
        InputError: The splitter does not support the language.
        MissingExtraError: The splitter is not installed.
    """
    from duonlp.util.sentences import split_sentences

    # Splitters reject unpaired surrogates, which ROUGE ignores.
    encodable = text.encode("utf-8", "replace").decode()
    return "\n".join(split_sentences(encodable, language))
