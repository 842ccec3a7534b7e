"""Features of texts that are counts or TF-IDF weights of words, by scikit-learn."""

import importlib
import importlib.util
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np

from duonlp.errors import CheckpointError, InputError, MissingExtraError
from duonlp.fewshot.classifier import CLASSIFIER, ClassifierFiles, check_settings
from duonlp.schema import BOOL, choice, integer, list_of, text

MOST_WORDS = 1 << 24
LONGEST_NGRAM = 10
WEIGHINGS = ("counts", "tf-idf")
"""How WordFeatures weigh words, as stored in a classifier's folder."""


def import_sklearn(module: str) -> Any:
    """Return a module of scikit-learn, such as "linear_model".

    Raises:
        MissingExtraError: It is not installed.
    """
    if importlib.util.find_spec("sklearn") is None:
        raise MissingExtraError(
            "training linear classifiers and counting words need scikit-learn, which is not installed; "
            'pip install "duonlp[few-labels]"'
        )
    return importlib.import_module(f"sklearn.{module}")


@dataclass(frozen=True, eq=False)
class WordFeatures:
    """Counts or TF-IDF weights of words: sequences of at least two letters, digits or underscores, lowercased.

    The weight of a word that a text has c times is (1 + ln c) (1 + ln((1 + n) / (1 + d))) if d of n training texts have it; a
    text's weights have unit length. This is scikit-learn's TfidfVectorizer(sublinear_tf=True).

    Attributes:
        vocabulary: The words, and sequences of up to `longest_ngram` words separated by a space.
        longest_ngram: Number of words in the longest sequence.
        stop_words: Whether scikit-learn's English stop words are left out.
        idf: float64 [F], inverse document frequencies, or None for counts.
    """

    vocabulary: Sequence[str]
    longest_ngram: int
    stop_words: bool
    idf: np.ndarray | None = None

    @classmethod
    def of(cls, texts: Sequence[str], longest_ngram: int, stop_words: bool, weighted: bool) -> Self:
        """Return the features with the words of training texts.

        Args:
            texts: The texts.
            longest_ngram: Number of words in the longest sequence.
            stop_words: Whether to leave out English stop words.
            weighted: Whether to return TF-IDF weights.

        Raises:
            InputError: The texts have no words.
        """
        # An analyzer finds the words in the same way as a vectorizer, which would raise its own error without any.
        analyze = _vectorizer(longest_ngram, stop_words).build_analyzer()
        documents = [set(analyze(item)) for item in texts]
        frequencies: dict[str, int] = {}
        for word in (word for words in documents for word in words):
            frequencies[word] = frequencies.get(word, 0) + 1
        vocabulary = sorted(frequencies)
        if not vocabulary:
            raise InputError(
                f"the {len(texts)} training texts have no words, which are two or more letters or digits"
                f"{' and no stop words' if stop_words else ''}; give texts with words"
            )
        found = np.array([frequencies[word] for word in vocabulary], np.float64)
        idf = np.log((1 + len(texts)) / (1 + found)) + 1 if weighted else None
        return cls(vocabulary, longest_ngram, stop_words, idf)

    def __call__(self, texts: Sequence[str]) -> Any:
        """Return the features, a sparse float64 matrix [n, F]."""
        counts = _vectorizer(self.longest_ngram, self.stop_words, self.vocabulary).transform(texts).astype(np.float64)
        if self.idf is None:
            return counts
        counts.data = (1 + np.log(counts.data)) * self.idf[counts.indices]
        return import_sklearn("preprocessing").normalize(counts, copy=False)

    @property
    def width(self) -> int:
        """Number of words."""
        return len(self.vocabulary)

    def settings(self) -> dict[str, Any]:
        """Return what a classifier.json has about them."""
        names = {"features": WEIGHINGS[self.idf is not None], "vocabulary": list(self.vocabulary)}
        return names | {"longest_ngram": self.longest_ngram, "stop_words": self.stop_words}

    def arrays(self) -> dict[str, np.ndarray]:
        """Return what a classifier.safetensors has about them."""
        return {} if self.idf is None else {"idf": self.idf}

    def save(self, folder: Path) -> None:
        """Write no further files: settings and arrays are all there is."""

    @classmethod
    def load(cls, files: ClassifierFiles) -> Self:
        """Return the features of a classifier's folder.

        Raises:
            CheckpointError: It is damaged.
        """
        settings = check_settings(files, WORD_SETTINGS)
        vocabulary = settings["vocabulary"]
        if len(set(vocabulary)) != len(vocabulary):
            raise CheckpointError(f"{files.folder / CLASSIFIER}: vocabulary has a word twice; train again")
        idf = files.array("idf", np.float64, (len(vocabulary),)) if settings["features"] == "tf-idf" else None
        if idf is not None and not (np.isfinite(idf).all() and (idf > 0).all()):
            raise CheckpointError(f"{files.folder}: idf has values that are not finite and above 0; train again")
        return cls(vocabulary, settings["longest_ngram"], settings["stop_words"], idf)


WORD_SETTINGS = {
    "features": choice(*WEIGHINGS), "vocabulary": list_of(text(1 << 24), 1, MOST_WORDS),
    "longest_ngram": integer(1, LONGEST_NGRAM), "stop_words": BOOL,
}  # fmt: skip
"""Kinds of the settings of WordFeatures."""


def _vectorizer(longest_ngram: int, stop_words: bool, vocabulary: Sequence[str] | None = None) -> Any:
    return import_sklearn("feature_extraction.text").CountVectorizer(
        ngram_range=(1, longest_ngram), stop_words="english" if stop_words else None, vocabulary=vocabulary
    )
