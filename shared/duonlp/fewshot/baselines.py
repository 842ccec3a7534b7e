"""Baselines with scikit-learn: naive Bayes on word counts, and logistic regression on TF-IDF or on embeddings.

With several labels per text, each label has a classifier of its own (one-vs-rest). All of them are linear: a text's logits are
its features times coefficients, plus intercepts. That is also what is saved, so that nothing is unpickled.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from duonlp.data.labelled.texts import LabelledTexts
from duonlp.errors import InputError
from duonlp.fewshot.classifier import FewShotData
from duonlp.fewshot.linear import (
    LONGEST_NGRAM,
    EmbeddingFeatures,
    LinearClassifier,
    WordFeatures,
    fit_linear,
    import_sklearn,
    regression,
    single_texts,
)
from duonlp.pipelines.embedding import POOLINGS, TextEncoder
from duonlp.tasks.base import check_bool, check_choice, check_int, check_positive
from duonlp.typing import Engine


@dataclass(frozen=True)
class NaiveBayes:
    """Multinomial naive Bayes on word counts.

    A label without training texts has a probability of 0, and multi-label one that all of them have has 1.

    Attributes:
        smoothing: Count that is added to each word's (Laplace smoothing). With few labels, 0.1 is often better than the usual 1.
        longest_ngram: Also count sequences of up to this many words.
        stop_words: Whether to leave out English stop words.

    Raises:
        InputError: A setting is invalid.
    """

    name: ClassVar[str] = "naive-bayes"
    needs_engine: ClassVar[bool] = False
    needs_unlabelled: ClassVar[bool] = False
    classifier: ClassVar[type[LinearClassifier]] = LinearClassifier

    smoothing: float = 1.0
    longest_ngram: int = 1
    stop_words: bool = False

    def __post_init__(self) -> None:
        check_positive("smoothing", self.smoothing)
        check_words(self.longest_ngram, self.stop_words)

    def fit(
        self, package: Engine | None, data: FewShotData, *, seed: int = 0, console: Any = False
    ) -> LinearClassifier:
        """Count words; nothing is random, whatever the seed.

        Raises:
            InputError: There are no training texts, or no words in them.
            MissingExtraError: scikit-learn is not installed.
        """
        train = check_train(data)

        def fit(matrix: Any, targets: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
            model = import_sklearn("naive_bayes").MultinomialNB(alpha=self.smoothing).fit(matrix, targets)
            return model.feature_log_prob_.T, model.class_log_prior_

        features = WordFeatures.of(single_texts(train), self.longest_ngram, self.stop_words, weighted=False)
        return fit_linear(self.name, features, train, fit)


@dataclass(frozen=True)
class TfidfRegression:
    """Logistic regression on the TF-IDF weights of words; see :class:`duonlp.fewshot.linear.WordFeatures`.

    A label without training texts has a probability of 0, and multi-label one that all of them have has 1.

    Attributes:
        inverse_penalty: Inverse strength of the L2 penalty, scikit-learn's C.
        balanced: Whether the texts of each class, or those with and those without a label, weigh equally together.
        longest_ngram: Also count sequences of up to this many words.
        stop_words: Whether to leave out English stop words.

    Raises:
        InputError: A setting is invalid.
    """

    name: ClassVar[str] = "tf-idf"
    needs_engine: ClassVar[bool] = False
    needs_unlabelled: ClassVar[bool] = False
    classifier: ClassVar[type[LinearClassifier]] = LinearClassifier

    inverse_penalty: float = 1.0
    balanced: bool = True
    longest_ngram: int = 1
    stop_words: bool = False

    def __post_init__(self) -> None:
        check_positive("inverse_penalty", self.inverse_penalty)
        check_bool("balanced", self.balanced)
        check_words(self.longest_ngram, self.stop_words)

    def fit(
        self, package: Engine | None, data: FewShotData, *, seed: int = 0, console: Any = False
    ) -> LinearClassifier:
        """Weigh the words and train; nothing is random, whatever the seed.

        Raises:
            InputError: There are no training texts, or no words in them.
            MissingExtraError: scikit-learn is not installed.
        """
        train = check_train(data)
        features = WordFeatures.of(single_texts(train), self.longest_ngram, self.stop_words, weighted=True)
        return fit_linear(self.name, features, train, regression(self.inverse_penalty, self.balanced))


@dataclass(frozen=True)
class EmbeddingRegression:
    """Logistic regression on the embeddings of a frozen encoder.

    A label without training texts has a probability of 0, and multi-label one that all of them have has 1.

    Attributes:
        model: A sentence encoder, or with `pooling` any encoder or decoder: a folder or a Hub id.
        inverse_penalty: Inverse strength of the L2 penalty, scikit-learn's C.
        balanced: Whether the texts of each class, or those with and those without a label, weigh equally together.
        max_length: Maximum number of tokens of a text; None for the model's limit.
        batch_size: Texts that are embedded together.
        pooling: See :func:`duonlp.pipelines.embed`.

    Raises:
        InputError: A setting is invalid.
    """

    name: ClassVar[str] = "embeddings"
    needs_engine: ClassVar[bool] = True
    needs_unlabelled: ClassVar[bool] = False
    classifier: ClassVar[type[LinearClassifier]] = LinearClassifier

    model: str | Path
    inverse_penalty: float = 1.0
    balanced: bool = True
    max_length: int | None = 128
    batch_size: int = 32
    pooling: str | None = None

    def __post_init__(self) -> None:
        check_positive("inverse_penalty", self.inverse_penalty)
        check_bool("balanced", self.balanced)
        check_int("max_length", self.max_length, minimum=1, optional=True)
        check_int("batch_size", self.batch_size, minimum=1)
        check_choice("pooling", self.pooling, (*POOLINGS, None))

    def fit(
        self, package: Engine | None, data: FewShotData, *, seed: int = 0, console: Any = False
    ) -> LinearClassifier:
        """Embed the texts and train; nothing is random, whatever the seed.

        Raises:
            InputError: There is no package, or no training text, or one is empty.
            CheckpointError: The encoder cannot be found or read.
            MissingExtraError: scikit-learn is not installed.
        """
        train = check_train(data)
        import_sklearn("linear_model")  # raises before the encoder is loaded
        features = EmbeddingFeatures(TextEncoder(package, self.model, self.pooling, self.max_length, self.batch_size))
        return fit_linear(self.name, features, train, regression(self.inverse_penalty, self.balanced))


def check_train(data: FewShotData) -> LabelledTexts:
    """Return the training texts; raise InputError if there are none."""
    if not len(data.train):
        raise InputError("there are no training texts; give at least one labeled text")
    return data.train


def check_words(longest_ngram: Any, stop_words: Any) -> None:
    """Raise InputError if a setting of WordFeatures is invalid."""
    check_int("longest_ngram", longest_ngram, minimum=1)
    if longest_ngram > LONGEST_NGRAM:
        raise InputError(f"longest_ngram is {longest_ngram}; it must be at most {LONGEST_NGRAM}")
    check_bool("stop_words", stop_words)
