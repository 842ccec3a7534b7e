"""Batch single texts for masked language modeling: one row per text, with the special tokens that a classifier sees.

``MaskedTexts(texts, tokenizer, 16, max_length=128)`` goes through ``fit`` of both engines with a masked-lm model. Unlike packed
blocks, each row starts at the start of a text, so that the model adapts to texts as the later classifier reads them.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from duonlp.data.labelled.batches import LabelledBatches
from duonlp.data.objectives.language_modelling import MaskedLM
from duonlp.heads import IGNORED

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast


class MaskedTexts(LabelledBatches):
    """Batches of texts with masked tokens and the labels of these, epoch by epoch, in the order of LabelledBatches.

    Masks differ between epochs. The mask of a text depends only on the seed, the epoch and the text's index, so a resumed run
    sees the same batches.

    Attributes:
        objective: What is masked.
    """

    def __init__(
        self, texts: Sequence[str], tokenizer: "PreTrainedTokenizerFast", batch_size: int, *, max_length: int, seed: int = 0,
        shuffle: bool = True, probability: float = 0.15, whole_words: bool = False, widths: Sequence[int] | None = None,
        cache: str | Path | None = None,
    ):  # fmt: skip
        """Tokenize all texts.

        Args:
            texts: The texts, one row each.
            tokenizer: A `transformers` fast tokenizer with a mask token.
            batch_size: Rows per batch.
            max_length: Maximum number of tokens, special tokens included; longer texts are truncated.
            seed: Seed of the order and of the masks, in [0, 2**64).
            shuffle: Whether each epoch has an order of its own.
            probability: Expected fraction of tokens to predict, see MaskedLM.
            whole_words: Whether whole words are masked rather than single tokens, see MaskedLM.
            widths: Lengths to pad to, see LabelledBatches.
            cache: Folder to cache the ids in, see LabelledBatches.

        Raises:
            InputError: See MaskedLM and LabelledBatches.
        """
        self.objective = MaskedLM(tokenizer, probability=probability, whole_words=whole_words)
        super().__init__(
            list(texts), tokenizer, batch_size, max_length=max_length, seed=seed, shuffle=shuffle, widths=widths, cache=cache
        )  # fmt: skip

    def epoch(self, number: int, first: int = 0) -> Iterator[dict[str, np.ndarray]]:
        """Return an iterator over the batches of an epoch: the model's inputs and ``labels``, int32 [B, T] each.

        Labels are -100 except at the masked tokens.

        Args:
            number: Epoch, from 0 on.
            first: Index of the first batch to yield, for resuming within the epoch.

        Raises:
            InputError: The epoch is negative or `first` is out of range.
        """
        batches = super().epoch(number, first)
        return (
            self._mask(rows, batch, number) for rows, batch in zip(self.order(number)[first:], batches, strict=True)
        )

    def _mask(self, rows: np.ndarray, batch: dict[str, np.ndarray], epoch: int) -> dict[str, np.ndarray]:
        positions = epoch * len(self.texts) + np.maximum(rows, 0)
        masked = self.objective(batch["input_ids"], None, positions, self.seed)
        masked["labels"][rows < 0] = IGNORED
        return {name: value for name, value in batch.items() if name != "sample_weight"} | masked
