"""Batches of texts and labels: tokenised once, padded to a few lengths, in an order by seed and epoch."""

import math
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from duonlp.data.labelled.texts import LabelledTexts, Text
from duonlp.data.rows.length_batches import TOKENIZER_BATCH, LengthBatches, cache_key, load_or_build_rows
from duonlp.data.rows.manifest import tokenizer_hash
from duonlp.data.rows.token_rows import TokenRows, TokenRowsBuilder
from duonlp.errors import InputError
from duonlp.inputs import IGNORED

WIDTHS = (8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512, 768, 1024, 1536, 2048, 3072, 4096)
"""What rows are padded to. Queries have 5 to 20 tokens, where `duonlp.util.buckets` would pad them to 16 or 32."""

CACHE_VERSION = 1


class LabelledBatches(LengthBatches):
    """The batches of labelled texts, epoch by epoch: any batch of any epoch from the seed and two numbers.

    Each epoch has every text once, in an order of its own. Texts of like lengths come together (shuffled texts are sorted
    within pools of 64 batches, and the batches shuffled), and lengths are padded to a few, so that little is padding and few
    shapes are compiled. Every batch has `batch_size` rows: the last one is filled up with rows that count for nothing,
    labels -100; of texts without labels, weight 0.

    Attributes:
        texts: as they were given, str or pairs of str.
        labels: int32 [n], float32 [n, C] (multi-label), or None.
        label_names: of the classes; () where there are no labels.
        sample_weight: float32 [n], or None.
    """

    row_noun = "texts"

    def __init__(
        self,
        texts: LabelledTexts | Sequence[Text],
        tokenizer,
        batch_size: int,
        *,
        max_length: int,
        seed: int = 0,
        shuffle: bool = True,
        sort: bool = True,
        drop_last: bool = False,
        widths: Sequence[int] | None = None,
        sample_weight: Sequence[float] | None = None,
        teacher_tokenizer=None,
        cache: str | Path | None = None,
        host_index: int = 0,
        host_count: int = 1,
    ):
        """Tokenises all texts.

        Args:
            texts: with their labels; or texts alone, whose batches have no labels.
            tokenizer: of `transformers`; rows are padded on its `padding_side`.
            batch_size: rows of a batch, over all hosts.
            max_length: tokens, special ones included, that texts are cut to.
            seed: decides the order; from 0 to 2**64 - 1.
            shuffle: False: the same order each epoch.
            sort: bring texts of like lengths together; without `shuffle`, the shortest come first. False: the texts' own
                order, or a shuffled one, at the price of more padding. `order` says which text each row is.
            drop_last: leave out the texts that fill no batch, others in each epoch, rather than fill it up.
            widths: what rows are padded to, such as (max_length,) for a single shape. By default those of WIDTHS that are
                worth it: none below a quarter of what 99% of the texts stay within.
            sample_weight: of each text; its loss is multiplied by that.
            teacher_tokenizer: of a teacher with another tokenizer: batches get its inputs too, their names with `teacher_`
                before them.
            cache: a folder that the ids are kept in, and mapped into memory from: the next time nothing is tokenised. What
                is kept goes by a hash of the texts, the tokenizer and `max_length`.
            host_index: which host this is; it gets its share of each batch's rows, in shapes that all hosts agree on.
            host_count: how many hosts there are.

        Raises:
            InputError: there are no texts (or, with `drop_last`, not enough for a batch), a text gives no tokens or is no
                valid Unicode, the tokenizer has no token to pad with, or a number is out of range.
        """
        super().__init__(batch_size, seed, shuffle, drop_last, host_index, host_count)
        if isinstance(texts, str):
            raise InputError(f"texts is the text {texts[:40]!r}; give a list of texts")
        labelled = texts if isinstance(texts, LabelledTexts) else None
        self.texts: Sequence[Text] = labelled.texts if labelled else list(texts)
        self.labels = labelled.labels if labelled else None
        self.label_names = labelled.label_names if labelled else ()
        self.ids = labelled.ids if labelled else [str(number) for number in range(len(self.texts))]
        self.sort = sort
        self.sample_weight = None if sample_weight is None else _weights(sample_weight, len(self.texts))
        self.max_length = max_length
        self.check_count()
        cache = None if cache is None else Path(os.path.expanduser(cache))
        self._inputs = [_Inputs("", tokenizer, self.texts, max_length, widths, cache)]
        if teacher_tokenizer is not None:
            self._inputs.append(_Inputs("teacher_", teacher_tokenizer, self.texts, max_length, widths, cache))

    @property
    def rows(self) -> TokenRows:
        """The ids of each text, cut, special tokens included."""
        return self._inputs[0].ids

    @property
    def widths(self) -> tuple[int, ...]:
        """What rows are padded to."""
        return self._inputs[0].widths

    @property
    def _count(self) -> int:
        return len(self.texts)

    def _sort_by_length(self, rows: np.ndarray) -> np.ndarray:
        return rows[np.lexsort([inputs.ids.lengths[rows] for inputs in reversed(self._inputs)])] if self.sort else rows

    def _unshuffled(self) -> np.ndarray:
        return self._sort_by_length(super()._unshuffled())

    def _collate(self, rows: np.ndarray, batch: np.ndarray) -> dict[str, np.ndarray]:
        filling = rows < 0
        rows = np.where(filling, rows[0], rows)
        arrays = {}
        for inputs in self._inputs:
            arrays |= inputs.arrays(rows, batch)
        if self.labels is not None:
            arrays["labels"] = self.labels[rows]
            arrays["labels"][filling] = IGNORED
        if self.sample_weight is not None or self.labels is None:
            weights = np.ones(len(rows), np.float32) if self.sample_weight is None else self.sample_weight[rows]
            arrays["sample_weight"] = np.where(filling, np.float32(0), weights)
        return arrays


class _Inputs:
    """The ids of texts by one tokenizer, and the arrays that a model reads of them."""

    def __init__(self, prefix: str, tokenizer, texts: Sequence[Text], max_length: int, widths, cache: Path | None):
        self.prefix = prefix
        self.tokenizer = tokenizer
        self.pair = isinstance(texts[0], tuple)
        self.max_length = self._check(max_length)
        self.has_types = "token_type_ids" in getattr(tokenizer, "model_input_names", ())
        if cache is None:
            rows = self._tokenised(texts)
        else:
            names = ("ids", "types")[: 1 + self.has_types]
            rows = load_or_build_rows(
                cache / self._key(texts), names, len(texts), lambda: self._tokenised(texts), "texts"
            )
        self.ids, self.types = rows if self.has_types else (*rows, None)
        lengths = self.ids.lengths
        self.widths = _useful(lengths, self.max_length) if widths is None else _check_widths(widths, int(lengths.max()))

    def arrays(self, rows: np.ndarray, batch: np.ndarray) -> dict[str, np.ndarray]:
        """int32 [rows, width] each: input_ids, attention_mask and, where the model has them, token_type_ids."""
        longest = self.ids.lengths[batch].max()
        width = next(width for width in self.widths if width >= longest)
        lengths = self.ids.lengths[rows]
        places = np.arange(width)
        found = {
            "input_ids": self.ids.padded(rows, width, self.tokenizer.pad_token_id),
            "attention_mask": (places < lengths[:, None]).astype(np.int32),
        }
        if self.types is not None:
            found["token_type_ids"] = self.types.padded(rows, width, self.tokenizer.pad_token_type_id)
        if self.tokenizer.padding_side == "left":  # each row turned until its end is the last
            turned = (places - (width - lengths)[:, None]) % width
            found = {name: np.take_along_axis(values, turned, axis=1) for name, values in found.items()}
        return {self.prefix + name: values for name, values in found.items()}

    def _check(self, max_length: int) -> int:
        if self.tokenizer.pad_token_id is None:
            raise InputError(
                "the tokenizer has no token to pad with; set its pad_token, such as tokenizer.pad_token = tokenizer.eos_token"
            )
        special = self.tokenizer.num_special_tokens_to_add(pair=self.pair)
        whole = isinstance(max_length, (int, np.integer)) and not isinstance(max_length, bool)
        if not whole or max_length <= special:
            raise InputError(
                f"max_length is {max_length!r}; it must be a whole number from {special + 1} on: {special} special tokens and "
                "one of the text"
            )
        return int(max_length)

    def _tokenised(self, texts: Sequence[Text]) -> tuple[TokenRows, ...]:
        ids, types = TokenRowsBuilder(), TokenRowsBuilder()
        for first in range(0, len(texts), TOKENIZER_BATCH):
            some = texts[first : first + TOKENIZER_BATCH]
            encoded = self._encoded(some, first)
            for number, row in enumerate(encoded["input_ids"], first):
                if not len(row):
                    raise InputError(f"text {number} gives no tokens: {texts[number]!r}; leave it out")
                ids.add(row)
            for row in encoded["token_type_ids"] if self.has_types else ():
                types.add(row)
        return (ids.build(), types.build()) if self.has_types else (ids.build(),)

    def _encoded(self, texts: Sequence[Text], first: int):
        for number, text in enumerate(texts, first):
            parts = text if self.pair and isinstance(text, tuple) and len(text) == 2 else (text,)
            if not all(isinstance(part, str) for part in parts) or self.pair != (len(parts) == 2):
                raise InputError(f"text {number} is {text!r}; give texts alone, or pairs of texts alone")
            for part in parts:
                if (half := _half_of_a_pair(part)) is not None:
                    raise InputError(
                        f"text {number} has half of a surrogate pair at character {half}, which is no valid Unicode; mend it, "
                        "or leave it out"
                    )
        return self.tokenizer(
            *(map(list, zip(*texts)) if self.pair else [list(texts)]),
            truncation=True,
            max_length=self.max_length,
            return_attention_mask=False,
            return_token_type_ids=self.has_types,
            verbose=False,
        )

    def _key(self, texts: Sequence[Text]) -> str:
        """A name that changes with everything that the ids depend on."""
        tokenizer = self.tokenizer
        probe = tokenizer("a", *(["a"] if self.pair else []), verbose=False)["input_ids"]  # its special tokens
        settings = [
            CACHE_VERSION, tokenizer_hash(tokenizer), probe, tokenizer.truncation_side, self.max_length, self.has_types
        ]  # fmt: skip
        return cache_key(settings, texts)


def _half_of_a_pair(text: str) -> int | None:
    """Where a text has half of a surrogate pair; None where it has none."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        return error.start
    return None


def _useful(lengths: np.ndarray, most: int) -> tuple[int, ...]:
    """The widths of rows of these lengths that are worth compiling a shape for: short rows save little beside long ones."""
    longest, usual = int(lengths.max()), math.ceil(float(np.percentile(lengths, 99)))
    # Not more than what texts are cut to: the model may have no more positions.
    last = min(next((width for width in WIDTHS if width >= longest), most), most)
    return *(width for width in WIDTHS if usual / 4 <= width < last), last


def _check_widths(widths: Sequence[int], longest: int) -> tuple[int, ...]:
    found = tuple(sorted(set(widths)))
    if not found or found[0] < 1 or found[-1] < longest:
        raise InputError(
            f"widths are {tuple(widths)}, and the longest text has {longest} tokens; the greatest must be no less than that"
        )
    return found


def _weights(given: Sequence[float], count: int) -> np.ndarray:
    weights = np.asarray(given, np.float32)
    if weights.shape != (count,) or not (np.isfinite(weights) & (weights >= 0)).all():
        raise InputError(
            f"sample_weight has the shape {list(weights.shape)}, and there are {count} texts; give each a number from 0 on"
        )
    return weights
