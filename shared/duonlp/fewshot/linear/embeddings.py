"""Features of texts that are embeddings by a frozen sentence encoder."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self

import numpy as np

from duonlp.errors import CheckpointError
from duonlp.fewshot.classifier import ClassifierFiles, check_settings
from duonlp.schema import POSITIONS, choice, integer, text
from duonlp.typing import Engine

EMBEDDINGS = "embeddings"
"""Name of these features in a classifier's folder."""

PROBE = "The download of the data set hangs; please fix it."
"""A text by whose embedding a classifier recognizes the encoder that it was trained with."""


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
        return {
            "features": EMBEDDINGS,
            "model": self.model,
            "max_length": self.max_length,
            "batch_size": self.batch_size,
        }

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


EMBEDDING_SETTINGS = {
    "features": choice(EMBEDDINGS), "model": text(10_000), "max_length": POSITIONS | None, "batch_size": integer(1, 1 << 20),
}  # fmt: skip
"""Kinds of the settings of EmbeddingFeatures."""
