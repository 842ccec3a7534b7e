"""A Keras layer that tokenizes texts, for models and for ``tf.data``."""

from typing import Any

import keras
import tensorflow as tf

from duonlp.errors import InputError
from duonlp.tasks.base import check_int
from duonlp.typing import Tokenizer
from tfnlp.text.tokenizer import GraphTokenizer


class TextTokenizer(keras.layers.Layer):
    """A fast tokenizer of Transformers as a layer: texts to a model's inputs, with the same ids.

    Use it in ``dataset.map(layer)``, on batches of texts.

    Args:
        tokenizer: The tokenizer.
        max_length: Number of tokens to truncate to; None for no limit.
        pad_to_max_length: Whether rows have ``max_length`` columns, instead of those of the longest row of the batch.
        options: Arguments of keras.layers.Layer.

    Raises:
        InputError: An argument is invalid, or a part of the tokenizer cannot be put in a graph.
        MissingExtraError: tensorflow-text is not installed.
    """

    def __init__(
        self, tokenizer: Tokenizer, max_length: int | None = None, pad_to_max_length: bool = False, **options: Any
    ) -> None:
        super().__init__(trainable=False, autocast=False, **options)
        check_int("max_length", max_length, minimum=1, optional=True)
        if pad_to_max_length and max_length is None:
            raise InputError("pad_to_max_length=True needs a max_length; pass the number of columns")
        self.tokenizer = GraphTokenizer(tokenizer)
        self.max_length, self.pad_to_max_length = max_length, pad_to_max_length

    def call(self, texts: tf.Tensor, text_pairs: tf.Tensor | None = None) -> dict[str, tf.Tensor]:
        """Return the inputs of texts or pairs, string [B]: int32 [B, T] each, as ``tokenizer(texts, padding=True)``."""
        rows = self.tokenizer.rows(texts, text_pairs, max_length=self.max_length)
        return self.tokenizer.inputs(rows, self.max_length if self.pad_to_max_length else None)
