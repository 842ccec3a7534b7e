"""Training batches of texts in patterns, with a label or masked tokens to predict."""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from duonlp.data.rows.order import check_seed, permuted
from duonlp.errors import InputError
from duonlp.heads import IGNORED, ROW_MASK
from duonlp.inputs import LOGIT_POSITIONS
from duonlp.prompts.patterns import Pattern, Verbalizer, encode_masked, num_masks, pad_prompts
from duonlp.training.objectives.prompt import TEXT
from duonlp.typing import Tokenizer
from duonlp.util.buckets import bucket


class PromptBatches:
    """Batches of texts in patterns, for the objectives of :mod:`duonlp.training.objectives.prompt`.

    The seed, the epoch and the number of a batch determine it. Each epoch has every text once, in an order and with patterns of
    its own. All batches have one shape; the last one is filled up with rows whose ``row_mask`` is 0.

    Args:
        tokenizer: Tokenizer with a mask token.
        patterns: Patterns, which take turns.
        verbalizer: The labels' words.
        texts: The texts.
        labels: int32 [n], or float32 [n, C] for several labels per text.
        batch_size: Texts per batch.
        max_length: Maximum number of tokens.
        seed: Seed of order, patterns, masked tokens and labels.
        text_mode: Whether there is a second prompt per row whose text is to be predicted: "" for none; "label" for the same text
            in the pattern with a label, right or wrong with equal chance (ADAPET); "mask" for one of `other_texts` in the pattern
            with masks (PET's auxiliary loss).
        other_texts: Texts for "mask".
        mask_share: Share of the text's tokens that are masked, at least one.

    Raises:
        InputError: There are no texts; also as in :func:`encode_masked`.
    """

    def __init__(
        self, tokenizer: Tokenizer, patterns: Sequence[Pattern], verbalizer: Verbalizer, texts: Sequence[str],
        labels: np.ndarray, batch_size: int, *, max_length: int, seed: int = 0, text_mode: str = "",
        other_texts: Sequence[str] = (), mask_share: float = 0.15,
    ):  # fmt: skip
        if not texts:
            raise InputError(
                "there are no labeled texts to learn from; pass some, or use the method 'prompt', which needs none"
            )
        self.tokenizer, self.patterns, self.verbalizer = tokenizer, tuple(patterns), verbalizer
        self.texts, self.labels, self.batch_size, self.seed = list(texts), labels, batch_size, check_seed(seed)
        self.max_length, self.text_mode, self.mask_share = max_length, text_mode, mask_share
        self.other_texts = list(other_texts)
        self.masks = num_masks(verbalizer.tokens(tokenizer, self.patterns))
        self._prompts = [encode_masked(tokenizer, p, self.texts, self.masks, max_length) for p in self.patterns]
        longest = max(len(prompt.ids) for prompts in self._prompts for prompt in prompts)
        self.width = bucket(longest, max_length) if not text_mode else max_length  # what a label makes longer fits too

    def __len__(self) -> int:
        """Return the number of batches in an epoch."""
        return -(-len(self.texts) // self.batch_size)

    def epoch(self, number: int, first: int = 0) -> Iterator[dict[str, np.ndarray]]:
        """Return an iterator over the batches of an epoch from the batch `first` on."""
        return (self.batch(number, i) for i in range(first, len(self)))

    def order(self, number: int) -> np.ndarray:
        """Return the indices of the texts of each batch of an epoch, int64 [len(self), batch_size]; -1 marks filling."""
        count, rows = len(self.texts), np.full(len(self) * self.batch_size, -1, np.int64)
        rows[:count] = permuted(np.arange(count), count, self.seed, number)
        return rows.reshape(-1, self.batch_size)

    def batch(self, epoch: int, number: int) -> dict[str, np.ndarray]:
        """Return a batch of an epoch, NumPy arrays [batch_size, ...]."""
        rows = self.order(epoch)[number]
        real = rows >= 0
        rows = np.where(real, rows, rows[0])
        places = [(int(row), (int(row) + epoch) % len(self.patterns)) for row in rows]
        prompts = [self._prompts[pattern][row] for row, pattern in places]
        labels = self.labels[rows].copy()
        labels[~real] = IGNORED
        batch: dict[str, Any] = pad_prompts(self.tokenizer, prompts, self.width)
        batch |= {
            LOGIT_POSITIONS: np.stack([prompt.blank for prompt in prompts]).astype(np.int32), "labels": labels,
            ROW_MASK: real.astype(np.int32),
        }  # fmt: skip
        return batch | self._text_inputs(epoch, number, places) if self.text_mode else batch

    def _text_inputs(self, epoch: int, number: int, places: list[tuple[int, int]]) -> dict[str, np.ndarray]:
        """Return the inputs of the second prompts, their masked tokens and, for labels, whether these are right."""
        rng = np.random.default_rng((self.seed, epoch, number))
        count, target = len(places), np.ones(len(places), np.float32)
        if self.text_mode == "label":
            texts, chosen = [self.texts[row] for row, _ in places], [self._draw_label(rng, row) for row, _ in places]
            target[:] = [is_right for _, is_right in chosen]
            words = [self.verbalizer.words[label] for label, _ in chosen]
            blanks = [of_label[rng.integers(len(of_label))] for of_label in words]
        else:
            texts = [self.other_texts[i] for i in rng.integers(len(self.other_texts), size=count)]
            blanks = [self.tokenizer.mask_token * self.masks] * count
        prompts = [
            self.patterns[pattern].encode(self.tokenizer, [text], [blank], self.max_length)[0]
            for (_, pattern), text, blank in zip(places, texts, blanks, strict=True)
        ]
        most = max(1, round(self.mask_share * self.max_length))
        arrays = pad_prompts(self.tokenizer, prompts, self.width, TEXT)
        positions, labels = np.zeros((count, most), np.int32), np.full((count, most), IGNORED, np.int32)
        for row, prompt in enumerate(prompts):
            size = min(max(1, round(self.mask_share * len(prompt.text))), len(prompt.text), most)
            masked = np.sort(rng.choice(prompt.text, size, replace=False)) if size else prompt.text
            positions[row, :size], labels[row, :size] = masked, prompt.ids[masked]
            arrays[f"{TEXT}input_ids"][row, masked] = self.tokenizer.mask_token_id
        arrays |= {TEXT + LOGIT_POSITIONS: positions, f"{TEXT}labels": labels}
        return arrays | ({f"{TEXT}target": target} if self.text_mode == "label" else {})

    def _draw_label(self, rng: np.random.Generator, row: int) -> tuple[int, bool]:
        """Return a label for a text, right or wrong with equal chance where it has both, and whether it is right."""
        has = (
            self.labels[row] > 0.5
            if self.labels.ndim == 2
            else np.arange(len(self.verbalizer.words)) == self.labels[row]
        )
        is_right = bool(has.any() and (has.all() or rng.random() < 0.5))
        return int(rng.choice(np.flatnonzero(has == is_right))), is_right
