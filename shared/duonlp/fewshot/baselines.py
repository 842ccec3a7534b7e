"""Baselines with scikit-learn: naive Bayes on word counts, and logistic regression on TF-IDF or on embeddings.

With several labels per text, each label has a classifier of its own (one-vs-rest). All of them are linear: a text's logits are
its features times coefficients, plus intercepts. That is also what is saved, so that nothing is unpickled.
"""

import importlib
import importlib.util
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Protocol, Self, cast

import numpy as np

from duonlp.data.labelled.texts import LabelledTexts
from duonlp.errors import CheckpointError, InputError, MissingExtraError
from duonlp.fewshot.classifier import CLASSIFIER, ClassifierFiles, FewShotData, check_settings, write_classifier
from duonlp.metrics.classification import sigmoid, softmax
from duonlp.schema import BOOL, POSITIONS, choice, integer, list_of, text
from duonlp.tasks.base import check_bool, check_int, describe
from duonlp.typing import Engine

MOST_WORDS = 1 << 24
LONGEST_NGRAM = 10
WEIGHINGS = ("counts", "tf-idf")
"""What WordFeatures are by name, as a classifier's folder has them."""

PROBE = "The download of the data set hangs; please fix it."
"""A text by whose embedding a classifier recognizes the encoder that it was trained with."""


class Features(Protocol):
    """Features of texts."""

    def __call__(self, texts: Sequence[str]) -> Any:
        """Return the features, a matrix [n, F], sparse or dense."""
        ...

    @property
    def width(self) -> int:
        """Number of features F."""
        ...

    def settings(self) -> dict[str, Any]:
        """Return what a classifier.json has about them."""
        ...

    def arrays(self) -> dict[str, np.ndarray]:
        """Return what a classifier.safetensors has about them."""
        ...


def import_sklearn(module: str) -> Any:
    """Return a module of scikit-learn, such as "linear_model".

    Raises:
        MissingExtraError: It is not installed.
    """
    if importlib.util.find_spec("sklearn") is None:
        raise MissingExtraError(
            'the baselines need scikit-learn, which is not installed; pip install "duonlp[few-labels]"'
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


class EmbeddingFeatures:
    """Embeddings of texts by a frozen sentence encoder.

    A classifier's folder refers to the encoder, by its Hub id or the absolute path of its folder, rather than copying what has
    not been trained. It also has the embedding of one text, so that another encoder in its place is an error.

    Args:
        package: tfnlp or jaxnlp.
        model: A checkpoint for the pipeline "sentence-embedding": a folder or a Hub id.
        max_length: Maximum number of tokens of a text; the model's limit holds for larger numbers, and for None.
        batch_size: Rows of a batch.

    Raises:
        CheckpointError: The checkpoint cannot be found or read.
        InputError: It has no sentence encoder.
    """

    def __init__(self, package: Engine, model: str | Path, max_length: int | None, batch_size: int):
        folder = Path(model).expanduser()
        self.model = str(folder.absolute()) if folder.is_dir() else str(model)
        self.max_length, self.batch_size = max_length, batch_size
        self._pipe = package.pipeline("sentence-embedding", self.model, progress=False)
        limits = (max_length, self._pipe.task.limit())
        self._limit = min((limit for limit in limits if limit is not None), default=None)
        self.probe = self([PROBE])[0]

    def __call__(self, texts: Sequence[str]) -> np.ndarray:
        """Return the embeddings of texts, float32 [n, F].

        Raises:
            InputError: A text is empty.
        """
        return np.asarray(self._pipe(list(texts), max_length=self._limit, batch_size=self.batch_size), np.float32)

    @property
    def width(self) -> int:
        """Number of components of an embedding."""
        return len(self.probe)

    def settings(self) -> dict[str, Any]:
        """Return what a classifier.json has about them."""
        return {"model": self.model, "max_length": self.max_length, "batch_size": self.batch_size}

    def arrays(self) -> dict[str, np.ndarray]:
        """Return what a classifier.safetensors has about them."""
        return {"probe": self.probe}

    @classmethod
    def load(cls, files: ClassifierFiles, package: Engine) -> Self:
        """Return the features of a classifier's folder.

        Raises:
            CheckpointError: It is damaged, or the encoder is missing or another than in training.
        """
        settings = check_settings(files, EMBEDDING_SETTINGS)
        expected = files.array("probe", np.float32, (None,))
        features = cls(package, settings["model"], settings["max_length"], settings["batch_size"])
        probe = features.probe
        is_same = probe.shape == expected.shape and np.isfinite(expected).all()
        if not is_same or np.abs(probe - expected).max() > 1e-3 * np.abs(expected).max():
            raise CheckpointError(
                f"{files.folder}: the encoder {settings['model']!r} is not the one that this classifier was trained with; "
                "restore it, or train again"
            )
        return features


EMBEDDING_SETTINGS = {"model": text(10_000), "max_length": POSITIONS | None, "batch_size": integer(1, 1 << 20)}
"""Kinds of the settings of EmbeddingFeatures."""


class LinearClassifier:
    """A classifier whose logits are linear in the features of a text.

    Args:
        method: Name of the method that has trained it.
        features: Features of texts.
        coefficients: float64 [F, C].
        intercepts: float64 [C]; -inf and inf are probabilities of 0 and, if multi-label, 1.
        label_names: Names of the labels.
        multi_label: Whether probabilities are sigmoids rather than a softmax.

    Attributes:
        label_names: Names of the labels.
        multi_label: Whether a text may have several labels, or none.
    """

    def __init__(
        self,
        method: str,
        features: Features,
        coefficients: np.ndarray,
        intercepts: np.ndarray,
        label_names: tuple[str, ...],
        multi_label: bool,
    ):
        self.method, self.features, self.label_names, self.multi_label = method, features, label_names, multi_label
        self.coefficients, self.intercepts = coefficients, intercepts

    def scores(self, texts: Sequence[str]) -> np.ndarray:
        """Return the probability of each label, float32 [n, C]; without `multi_label`, rows add up to 1.

        A label without training texts has a probability of 0. Multi-label, one that all training texts have has 1.

        Raises:
            InputError: `texts` is not a list of texts.
        """
        if isinstance(texts, str) or not all(isinstance(item, str) for item in texts):
            raise InputError(f"texts are {describe(texts)}; give a list of texts (str)")
        if not len(texts):
            return np.zeros((0, len(self.label_names)), np.float32)
        logits = self.features(list(texts)) @ self.coefficients + self.intercepts  # [n, C]
        return (sigmoid(logits) if self.multi_label else softmax(logits)).astype(np.float32)

    def save(self, folder: str | Path) -> None:
        """Write everything that ``load_classifier`` needs, atomically."""
        arrays = {"coefficients": self.coefficients, "intercepts": self.intercepts} | self.features.arrays()
        settings = self.features.settings()
        write_classifier(ClassifierFiles(self.method, self.label_names, self.multi_label, settings, arrays), folder)

    @classmethod
    def load(cls, files: ClassifierFiles, package: Engine | None) -> Self:
        """Return the classifier of a folder.

        Raises:
            CheckpointError: It is damaged.
        """
        uses_words = files.method != EmbeddingRegression.name or package is None
        features = WordFeatures.load(files) if uses_words else EmbeddingFeatures.load(files, package)
        classes = len(files.label_names)
        coefficients = files.array("coefficients", np.float64, (features.width, classes))
        intercepts = files.array("intercepts", np.float64, (classes,))
        is_valid = np.isfinite(coefficients).all() and not np.isnan(intercepts).any()
        if not files.multi_label:
            is_valid = is_valid and np.isfinite(intercepts).any() and not np.isposinf(intercepts).any()
        if not is_valid:
            raise CheckpointError(f"{files.folder}: coefficients or intercepts are not finite; train again")
        return cls(files.method, features, coefficients, intercepts, files.label_names, files.multi_label)


def fit_linear(
    method: str,
    features: Features,
    train: LabelledTexts,
    fit: Callable[[Any, np.ndarray], tuple[np.ndarray, np.ndarray]],
) -> LinearClassifier:
    """Train a linear classifier on the classes that occur; the others get a constant probability.

    Args:
        method: Name of the method.
        features: Features of texts.
        train: The training texts.
        fit: ``fit(X, y) -> (coefficients [F, K], intercepts [K])``, for K >= 2 classes y of 0 ... K - 1.
    """
    matrix = features(single_texts(train))  # [n, F]
    classes = len(train.label_names)
    coefficients, intercepts = np.zeros((features.width, classes)), np.full(classes, -np.inf)
    if train.multi_label:
        for label, true in enumerate((train.labels > 0.5).T):
            if true.all():
                intercepts[label] = np.inf
            elif true.any():
                weights, biases = fit(matrix, true.astype(np.int64))
                coefficients[:, label], intercepts[label] = weights[:, 1] - weights[:, 0], biases[1] - biases[0]
    else:
        present, targets = np.unique(train.labels, return_inverse=True)
        intercepts[present] = 0.0
        if len(present) > 1:
            coefficients[:, present], intercepts[present] = fit(matrix, targets)
    return LinearClassifier(method, features, coefficients, intercepts, train.label_names, train.multi_label)


def check_train(data: FewShotData) -> LabelledTexts:
    """Return the training texts; raise InputError if there are none."""
    if not len(data.train):
        raise InputError("there are no training texts; give at least one labeled text")
    return data.train


def single_texts(train: LabelledTexts) -> list[str]:
    """Return the training texts; FewShotData has checked that they are not pairs."""
    return cast(list[str], train.texts)


def check_words(longest_ngram: Any, stop_words: Any) -> None:
    """Raise InputError if a setting of WordFeatures is invalid."""
    check_int("longest_ngram", longest_ngram, minimum=1)
    if longest_ngram > LONGEST_NGRAM:
        raise InputError(f"longest_ngram is {longest_ngram}; it must be at most {LONGEST_NGRAM}")
    check_bool("stop_words", stop_words)


def check_above_0(name: str, value: Any) -> None:
    """Raise InputError unless a value is a finite number above 0."""
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if not is_number or not 0 < value < float("inf"):
        raise InputError(f"{name} is {value!r}; it must be a finite number above 0")


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
        check_above_0("smoothing", self.smoothing)
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
    """Logistic regression on the TF-IDF weights of words; see :class:`WordFeatures`.

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
        check_above_0("inverse_penalty", self.inverse_penalty)
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
    """Logistic regression on the embeddings of a frozen sentence encoder.

    A label without training texts has a probability of 0, and multi-label one that all of them have has 1.

    Attributes:
        model: A checkpoint for the pipeline "sentence-embedding": a folder or a Hub id. A saved classifier refers to it.
        inverse_penalty: Inverse strength of the L2 penalty, scikit-learn's C.
        balanced: Whether the texts of each class, or those with and those without a label, weigh equally together.
        max_length: Maximum number of tokens of a text; None for the model's limit.
        batch_size: Texts that are embedded together.

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

    def __post_init__(self) -> None:
        check_above_0("inverse_penalty", self.inverse_penalty)
        check_bool("balanced", self.balanced)
        check_int("max_length", self.max_length, minimum=1, optional=True)
        check_int("batch_size", self.batch_size, minimum=1)

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
        if package is None:
            raise InputError(f"the method {self.name!r} runs a model; pass package=tfnlp or jaxnlp")
        import_sklearn("linear_model")  # raises before the encoder is loaded
        features = EmbeddingFeatures(package, self.model, self.max_length, self.batch_size)
        return fit_linear(self.name, features, train, regression(self.inverse_penalty, self.balanced))


def regression(inverse_penalty: float, balanced: bool) -> Callable[[Any, np.ndarray], tuple[np.ndarray, np.ndarray]]:
    """Return a function that trains logistic regression, for :func:`fit_linear`.

    Args:
        inverse_penalty: Inverse strength of the L2 penalty.
        balanced: Whether classes weigh equally.
    """

    def fit(matrix: Any, targets: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        weights = "balanced" if balanced else None
        cls = import_sklearn("linear_model").LogisticRegression
        model = cls(C=inverse_penalty, class_weight=weights, max_iter=1000).fit(matrix, targets)
        coefficients, intercepts = model.coef_.T, model.intercept_
        if len(intercepts) == 1:  # of two classes, scikit-learn has the second one's logit
            return np.hstack([np.zeros_like(coefficients), coefficients]), np.append(0.0, intercepts)
        return coefficients, intercepts

    return fit
