"""A classifier that is linear in the features of a text, and how it is trained."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol, Self, cast

import numpy as np

from duonlp.data.labelled.texts import LabelledTexts
from duonlp.errors import CheckpointError, InputError
from duonlp.fewshot.classifier import ClassifierFiles, write_classifier
from duonlp.fewshot.linear.embeddings import EMBEDDINGS, EmbeddingFeatures
from duonlp.fewshot.linear.words import WordFeatures, import_sklearn
from duonlp.metrics.classification import sigmoid, softmax
from duonlp.tasks.base import describe
from duonlp.typing import Engine


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

    def save(self, folder: Path) -> None:
        """Write what else belongs to them into the folder of a classifier."""
        ...


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
        files = ClassifierFiles(self.method, self.label_names, self.multi_label, self.features.settings(), arrays)
        write_classifier(files, folder, self.features.save)

    @classmethod
    def load(cls, files: ClassifierFiles, package: Engine | None) -> Self:
        """Return the classifier of a folder.

        Raises:
            CheckpointError: It is damaged.
        """
        if package is not None and files.settings.get("features") == EMBEDDINGS:
            features = EmbeddingFeatures.load(files, package)
        else:
            features = WordFeatures.load(files)
        return cls.with_features(files, features)

    @classmethod
    def with_features(cls, files: ClassifierFiles, features: Features) -> Self:
        """Return the classifier of a folder on features that are already loaded.

        Raises:
            CheckpointError: It is damaged.
        """
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


def single_texts(train: LabelledTexts) -> list[str]:
    """Return the training texts; FewShotData has checked that they are not pairs."""
    return cast(list[str], train.texts)


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
