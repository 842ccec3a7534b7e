"""A linear classifier of vectors, trained by logistic regression of scikit-learn and applied in NumPy."""

from dataclasses import dataclass
from typing import Any, Self

import numpy as np

from duonlp.errors import MissingExtraError
from duonlp.fewshot.classifier import ClassifierFiles

CERTAIN = 1e4
"""Logit of what is certain: that a label without training texts is absent, or one of all texts is there."""


@dataclass(frozen=True, eq=False)
class LinearHead:
    """A linear layer and the softmax or, for multi-label texts, the sigmoid of its outputs.

    Attributes:
        kernel: float32 [D, C].
        bias: float32 [C].
        multi_label: Whether a text may have several labels, or none.
    """

    kernel: np.ndarray
    bias: np.ndarray
    multi_label: bool

    @classmethod
    def fit(
        cls,
        vectors: np.ndarray,
        labels: np.ndarray,
        classes: int,
        inverse_regularization: float = 1.0,
        balanced: bool = False,
    ) -> Self:
        """Return the logistic regression of vectors: multinomial, or for multi-label texts one per label.

        A label that no text has gets a probability of 0, and a label that all multi-label texts have gets 1.

        Args:
            vectors: float32 [n, D].
            labels: int [n], or [n, C] with values 0 and 1.
            classes: Number of classes C.
            inverse_regularization: C of scikit-learn.
            balanced: Whether labels weigh as if all were equally frequent.

        Raises:
            MissingExtraError: scikit-learn is not installed.
        """
        kernel, bias = np.zeros((vectors.shape[1], classes), np.float32), np.full(classes, -CERTAIN, np.float32)
        if labels.ndim == 2:
            for label, column in enumerate(labels.T):
                if column.min() == column.max():
                    bias[label] = CERTAIN if column.min() else -CERTAIN
                    continue
                model = _regression(vectors, column != 0, inverse_regularization, balanced)
                kernel[:, label], bias[label] = model.coef_[0], model.intercept_[0]
            return cls(kernel, bias, True)
        present = np.unique(labels)
        if len(present) == 1:
            bias[present] = 0
            return cls(kernel, bias, False)
        model = _regression(vectors, labels, inverse_regularization, balanced)
        if len(present) == 2:  # one logit, of the second
            bias[present[0]], bias[present[1]] = 0, model.intercept_[0]
            kernel[:, present[1]] = model.coef_[0]
        else:
            kernel[:, present], bias[present] = model.coef_.T, model.intercept_
        return cls(kernel, bias, False)

    def scores(self, vectors: np.ndarray) -> np.ndarray:
        """Return the probability of each label, float32 [n, C]."""
        logits = vectors.astype(np.float32) @ self.kernel + self.bias
        if self.multi_label:
            return (0.5 * (1 + np.tanh(0.5 * logits))).astype(np.float32)
        exp = np.exp(logits - logits.max(axis=1, keepdims=True))
        return (exp / exp.sum(axis=1, keepdims=True)).astype(np.float32)

    def arrays(self) -> dict[str, np.ndarray]:
        """Return the arrays of classifier.safetensors."""
        return {"kernel": self.kernel, "bias": self.bias}

    @classmethod
    def read(cls, files: ClassifierFiles, size: int) -> Self:
        """Return the head of a classifier's folder.

        Args:
            files: The contents of the folder.
            size: Length D of the vectors.

        Raises:
            CheckpointError: An array is missing, or has another shape.
        """
        classes = len(files.label_names)
        kernel, bias = files.array("kernel", np.float32, (size, classes)), files.array("bias", np.float32, (classes,))
        return cls(kernel, bias, files.multi_label)


def _regression(vectors: np.ndarray, labels: np.ndarray, inverse_regularization: float, balanced: bool) -> Any:
    """Return a fitted LogisticRegression."""
    try:
        from sklearn.linear_model import LogisticRegression
    except ImportError:
        raise MissingExtraError(
            'a logistic regression needs scikit-learn, which is not installed; pip install "duonlp[few-labels]"'
        ) from None
    model = LogisticRegression(
        C=inverse_regularization, class_weight="balanced" if balanced else None, max_iter=1000, random_state=0
    )
    return model.fit(vectors, labels)
