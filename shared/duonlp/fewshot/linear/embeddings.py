"""Features of texts that are embeddings by a frozen encoder, and the encoder in a classifier's folder."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self

import numpy as np

from duonlp.fewshot.classifier import ClassifierFiles, check_settings
from duonlp.pipelines.embedding import POOLINGS, TextEncoder
from duonlp.schema import POSITIONS, choice, integer
from duonlp.typing import Engine

EMBEDDINGS = "embeddings"
"""Name of these features in a classifier's folder."""

ENCODER = "encoder"
"""Subfolder of the checkpoint of a frozen encoder."""

ENCODER_SETTINGS = {
    "pooling": choice(*POOLINGS) | None, "max_length": POSITIONS | None, "batch_size": integer(1, 1 << 31) | None,
}  # fmt: skip
"""Kinds of the settings of a frozen encoder, see :class:`duonlp.pipelines.TextEncoder`."""


def load_encoder(files: ClassifierFiles, package: Engine | None) -> TextEncoder:
    """Return the frozen encoder of a classifier's folder, whose settings have been checked.

    Raises:
        CheckpointError: It is missing or damaged.
        InputError: There is no package.
    """
    settings = {name: files.settings[name] for name in ENCODER_SETTINGS}
    return TextEncoder(package, files.folder / ENCODER, **settings)


class EmbeddingFeatures:
    """Embeddings of texts by a frozen encoder, which a classifier's folder has a copy of.

    Args:
        encoder: The encoder.
    """

    def __init__(self, encoder: TextEncoder):
        self.encoder = encoder

    def __call__(self, texts: Sequence[str]) -> np.ndarray:
        """Return the embeddings of texts, float32 [n, F].

        Raises:
            InputError: A text is empty.
        """
        return self.encoder(texts)

    @property
    def width(self) -> int:
        """Number of components of an embedding."""
        return self.encoder.size

    def settings(self) -> dict[str, Any]:
        """Return what a classifier.json has about them."""
        return {"features": EMBEDDINGS, **self.encoder.settings()}

    def arrays(self) -> dict[str, np.ndarray]:
        """Return what a classifier.safetensors has about them: nothing."""
        return {}

    def save(self, folder: Path) -> None:
        """Copy the encoder's checkpoint into a classifier's folder."""
        self.encoder.save(folder / ENCODER)

    @classmethod
    def load(cls, files: ClassifierFiles, package: Engine) -> Self:
        """Return the features of a classifier's folder.

        Raises:
            CheckpointError: It is damaged.
        """
        check_settings(files, {"features": choice(EMBEDDINGS), **ENCODER_SETTINGS})
        return cls(load_encoder(files, package))
