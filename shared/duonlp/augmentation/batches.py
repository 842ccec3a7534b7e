"""Batches in which texts are replaced by augmented copies, other ones in each epoch."""

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from duonlp.augmentation.augmenter import Augmenter, check_share, derived_seed
from duonlp.augmentation.labelled import copies_of
from duonlp.data.labelled.batches import WIDTHS, LabelledBatches
from duonlp.data.labelled.texts import LabelledTexts, Text
from duonlp.data.rows.order import SEED_LIMIT, random_choices
from duonlp.errors import InputError
from duonlp.tasks.base import check_int, describe

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_STEPS = 2**32


class AugmentedBatches(LabelledBatches):
    """Batches of labeled texts in which each text is replaced by an augmented copy with some probability in each epoch.

    Seed, epoch and batch number determine a batch, as in :class:`LabelledBatches`, so a resumed run reads the same ones. Labels
    and order are those of the texts themselves.

    Attributes:
        augmenter: Makes the copies.
        probability: Probability that a text is replaced in an epoch.
        copies: Number of copies of each text.
    """

    def __init__(
        self,
        texts: LabelledTexts | Sequence[Text],
        tokenizer: "PreTrainedTokenizerBase",
        batch_size: int,
        augmenter: Augmenter,
        *,
        probability: float = 0.5,
        copies: int | None = None,
        max_length: int,
        seed: int = 0,
        **options: Any,
    ):
        """Tokenize the texts, and with `copies`, make all copies.

        Args:
            texts: See :class:`LabelledBatches`.
            tokenizer: See there.
            batch_size: See there.
            augmenter: Makes the copies, such as ``RandomEdits()`` or ``cached(MaskedSubstitution(pipe), folder)``.
            probability: Probability that a text is replaced in an epoch.
            copies: Number of copies of each text to make at the beginning, one of which is drawn in each epoch: so a slow
                augmenter runs only once. None makes new copies for each batch.
            max_length: See there. Copies are truncated too.
            seed: Seed of the order and of the copies.
            options: Further arguments of :class:`LabelledBatches`, except `host_index` and `host_count`.

        Raises:
            InputError: An argument is out of range.
        """
        if hosts := {"host_index", "host_count"} & {*options}:
            raise InputError(
                f"AugmentedBatches got {min(hosts)}; omit it, since fit puts each host's rows on its devices"
            )
        if not hasattr(augmenter, "augment"):
            raise InputError(f"augmenter is {describe(augmenter)}; pass an augmenter such as RandomEdits()")
        check_share("probability", probability)
        check_int("copies", copies, minimum=1, optional=True)
        super().__init__(texts, tokenizer, batch_size, max_length=max_length, seed=seed, **options)
        self.augmenter, self.probability, self.copies = augmenter, probability, copies
        if options.get("widths") is None:
            for inputs in self._inputs:  # a copy may be longer than all texts
                longer = next((width for width in WIDTHS if width > inputs.widths[-1]), max_length)
                inputs.widths = tuple(dict.fromkeys([*inputs.widths, min(longer, max_length)]))
        self._made = None if copies is None else copies_of(self.texts, augmenter, copies, self.seed)

    def epoch(self, number: int, first: int = 0) -> Iterator[dict[str, np.ndarray]]:
        """Return an iterator over the batches of an epoch, from index `first` on; see :meth:`LengthBatches.epoch`."""
        order = self.order(number)
        if not 0 <= first <= len(order):
            raise InputError(f"first is {first}; it must be from 0 to {len(order)}, the number of batches in an epoch")
        return (self._augmented(rows, number) for rows in order[first:])

    def epoch_texts(self, rows: np.ndarray, number: int) -> list[Text]:
        """Return the texts of an epoch at these indices: the texts themselves or copies of them."""
        rows = np.asarray(rows, np.int64)
        draws = random_choices(rows, np.full(len(rows), _STEPS), (self.seed + 2) % SEED_LIMIT, number) / _STEPS
        replaced = [int(row) for row, draw in zip(rows, draws, strict=True) if draw < self.probability]
        if self._made is not None and self.copies is not None:
            counts = np.full(len(replaced), self.copies)
            chosen = random_choices(np.array(replaced, np.int64), counts, (self.seed + 3) % SEED_LIMIT, number)
            copies = {row: self._made[row][index] for row, index in zip(replaced, chosen.tolist(), strict=True)}
        else:
            seed = derived_seed(self.seed, "epoch", number)
            made = copies_of([self.texts[row] for row in replaced], self.augmenter, 1, seed)
            copies = {row: of_text[0] for row, of_text in zip(replaced, made, strict=True)}
        return [copies.get(int(row), self.texts[row]) for row in rows]

    def _augmented(self, rows: np.ndarray, number: int) -> dict[str, np.ndarray]:
        arrays, filling = self._batch(rows), rows < 0
        rows = np.where(filling, rows[0], rows)
        unique, places = np.unique(rows, return_inverse=True)
        texts = self.epoch_texts(unique, number)
        for inputs in self._inputs:
            arrays |= inputs.of_texts(texts).arrays(places, np.arange(len(texts)))
        return arrays
