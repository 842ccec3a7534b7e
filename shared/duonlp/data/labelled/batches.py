"""Batch labeled texts: tokenized once, padded to a few lengths, shuffled by seed and epoch."""

import copy
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import numpy as np

from duonlp.data.labelled.texts import LabelledTexts, Text
from duonlp.data.rows.length_batches import TOKENIZER_BATCH, LengthBatches, cache_key, load_or_build_rows
from duonlp.data.rows.manifest import tokenizer_hash
from duonlp.data.rows.token_rows import TokenRows, TokenRowsBuilder
from duonlp.errors import InputError
from duonlp.heads import IGNORED
from duonlp.util.tokenization import tokenize

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

WIDTHS = (8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512, 768, 1024, 1536, 2048, 3072, 4096)
"""Lengths to pad to. Queries have 5 to 20 tokens, which `duonlp.util.buckets` would pad to 16 or 32."""

CACHE_VERSION = 1


class LabelledBatches(LengthBatches):
    """Batches of labeled texts, epoch by epoch, with random access by seed, epoch and batch number.

    Each epoch contains every text once, in its own order. Texts of similar length are batched together (shuffled texts
    are sorted within pools of 64 batches, then the batches are shuffled) and padded to one of a few lengths, so there is
    little padding and few shapes are compiled. Every batch has `batch_size` rows; the last one is filled up with rows that
    do not count: their labels are -100 or, for texts without labels, their weights are 0.

    Attributes:
        texts: The given texts, str or pairs of str.
        labels: int32 [n], float32 [n, C] (multi-label), or None.
        label_names: Names of the classes; () without labels.
        ids: Names of the texts in the dataset.
        sample_weight: float32 [n], or None.
    """

    row_noun = "texts"

    def __init__(
        self,
        texts: LabelledTexts | Sequence[Text],
        tokenizer: "PreTrainedTokenizerBase",
        batch_size: int,
        *,
        max_length: int,
        seed: int = 0,
        shuffle: bool = True,
        sort: bool = True,
        drop_last: bool = False,
        widths: Sequence[int] | None = None,
        sample_weight: Sequence[float] | None = None,
        teacher_tokenizer: "PreTrainedTokenizerBase | None" = None,
        cache: str | Path | None = None,
        host_index: int = 0,
        host_count: int = 1,
    ):
        """Tokenize all texts.

        Args:
            texts: Labeled texts, or plain texts, whose batches have no labels.
            tokenizer: A `transformers` tokenizer; rows are padded on its `padding_side`.
            batch_size: Global batch size, over all hosts.
            max_length: Maximum number of tokens, special tokens included; longer texts are truncated.
            seed: Seed of the order, in [0, 2**64).
            shuffle: Whether each epoch has an order of its own. If False, every epoch has the same order.
            sort: Whether to batch texts of similar length together; without `shuffle`, shorter texts come first. If
                False, texts keep their order or a plain shuffled one, at the cost of more padding. `order` maps rows to
                texts.
            drop_last: Whether to drop the incomplete last batch (different texts in each epoch) instead of filling it up.
            widths: Lengths to pad to, such as (max_length,) for a single shape. Defaults to the useful ones of WIDTHS:
                none below a quarter of the 99th percentile of the texts' lengths.
            sample_weight: Weight of each text's loss.
            teacher_tokenizer: Tokenizer of a distillation teacher; batches then also hold the teacher's inputs, with
                the prefix `teacher_`.
            cache: Folder to cache the ids in; later runs memory-map them instead of tokenizing. The key is a hash of the
                texts, the tokenizer and `max_length`.
            host_index: Index of this host, which gets its share of each batch's rows. All hosts see the same shapes.
            host_count: Number of hosts.

        Raises:
            InputError: There are no texts (or, with `drop_last`, too few for a batch), a text has no tokens or is not
                valid Unicode, the tokenizer has no padding token, or a number is out of range.
        """
        super().__init__(batch_size, seed, shuffle, drop_last, host_index, host_count)
        if isinstance(texts, str):
            raise InputError(f"texts is the string {texts[:40]!r}; give a list of texts")
        if isinstance(texts, LabelledTexts):
            self.texts: Sequence[Text] = texts.texts
            self.labels: np.ndarray | None = texts.labels
            self.label_names = texts.label_names
            self.ids = texts.ids
        else:
            self.texts = list(texts)
            self.labels = None
            self.label_names = ()
            self.ids = [str(number) for number in range(len(self.texts))]
        self.sort = sort
        self.sample_weight = None if sample_weight is None else _check_weights(sample_weight, len(self.texts))
        self.max_length = max_length
        self.check_count()
        cache = None if cache is None else Path(os.path.expanduser(cache))
        self._inputs = [TextInputs("", tokenizer, self.texts, max_length, widths, cache)]
        if teacher_tokenizer is not None:
            self._inputs.append(TextInputs("teacher_", teacher_tokenizer, self.texts, max_length, widths, cache))

    @property
    def rows(self) -> TokenRows:
        """Token ids of each text, truncated, special tokens included."""
        return self._inputs[0].ids

    @property
    def widths(self) -> tuple[int, ...]:
        """Lengths that rows are padded to."""
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
        arrays: dict[str, np.ndarray] = {}
        for inputs in self._inputs:
            arrays |= inputs.arrays(rows, batch)
        if self.labels is not None:
            arrays["labels"] = self.labels[rows]
            arrays["labels"][filling] = IGNORED
        if self.sample_weight is not None or self.labels is None:
            weights = np.ones(len(rows), np.float32) if self.sample_weight is None else self.sample_weight[rows]
            arrays["sample_weight"] = np.where(filling, np.float32(0), weights)
        return arrays


class TextInputs:
    """Token ids of all texts from one tokenizer, and the model inputs made from them."""

    def __init__(
        self,
        prefix: str,
        tokenizer: "PreTrainedTokenizerBase",
        texts: Sequence[Text],
        max_length: int,
        widths: Sequence[int] | None,
        cache: Path | None,
    ):
        self.prefix = prefix
        self.tokenizer = tokenizer
        self.pair = isinstance(texts[0], tuple)
        self.max_length = self._check(max_length)
        self.has_types = "token_type_ids" in getattr(tokenizer, "model_input_names", ())
        if cache is None:
            rows = self._tokenize(texts)
        else:
            names = ("ids", "types")[: 1 + self.has_types]
            rows = load_or_build_rows(
                cache / self._cache_key(texts), names, len(texts), lambda: self._tokenize(texts), "texts"
            )
        self.ids, self.types = rows if self.has_types else (*rows, None)
        lengths = self.ids.lengths
        self.widths = (
            useful_widths(lengths, self.max_length) if widths is None else check_widths(widths, int(lengths.max()))
        )

    def of_texts(self, texts: Sequence[Text]) -> Self:
        """Return the inputs of other texts, truncated to the largest of the same widths."""
        inputs = copy.copy(self)
        inputs.max_length = min(self.max_length, self.widths[-1])
        inputs.ids, inputs.types = (*inputs._tokenize(texts), None)[:2]
        return inputs

    def arrays(self, rows: np.ndarray, batch: np.ndarray) -> dict[str, np.ndarray]:
        """Return input_ids, attention_mask and, if the model reads them, token_type_ids, int32 [rows, width] each."""
        longest = self.ids.lengths[batch].max()
        width = next(width for width in self.widths if width >= longest)
        lengths = self.ids.lengths[rows]
        positions = np.arange(width)
        arrays = {
            "input_ids": self.ids.padded(rows, width, self.tokenizer.pad_token_id),
            "attention_mask": (positions < lengths[:, None]).astype(np.int32),
        }
        if self.types is not None:
            arrays["token_type_ids"] = self.types.padded(rows, width, self.tokenizer.pad_token_type_id)
        if self.tokenizer.padding_side == "left":  # rotate each row until it ends at the right edge
            rotated = (positions - (width - lengths)[:, None]) % width
            arrays = {name: np.take_along_axis(values, rotated, axis=1) for name, values in arrays.items()}
        return {self.prefix + name: values for name, values in arrays.items()}

    def _check(self, max_length: int) -> int:
        if self.tokenizer.pad_token_id is None:
            raise InputError(
                "the tokenizer has no padding token; set pad_token, for example tokenizer.pad_token = tokenizer.eos_token"
            )
        special = self.tokenizer.num_special_tokens_to_add(pair=self.pair)
        is_integer = isinstance(max_length, (int, np.integer)) and not isinstance(max_length, bool)
        if not is_integer or max_length <= special:
            raise InputError(
                f"max_length is {max_length!r}; it must be an integer of at least {special + 1}, for {special} special "
                "tokens and one token of text"
            )
        return int(max_length)

    def _tokenize(self, texts: Sequence[Text]) -> tuple[TokenRows, ...]:
        ids, types = TokenRowsBuilder(), TokenRowsBuilder()
        for first in range(0, len(texts), TOKENIZER_BATCH):
            encoded = self._encode(texts[first : first + TOKENIZER_BATCH], first)
            for number, row in enumerate(encoded["input_ids"], first):
                if not len(row):
                    raise InputError(f"text {number} has no tokens: {texts[number]!r}; drop it")
                ids.add(row)
            for row in encoded["token_type_ids"] if self.has_types else ():
                types.add(row)
        return (ids.build(), types.build()) if self.has_types else (ids.build(),)

    def _encode(self, texts: Sequence[Text], first: int) -> Mapping[str, Any]:
        for number, text in enumerate(texts, first):
            parts = text if self.pair and isinstance(text, tuple) and len(text) == 2 else (text,)
            if self.pair != (len(parts) == 2):
                raise InputError(f"text {number} is {text!r}; give only texts or only pairs of texts")
            for part in parts:
                if not isinstance(part, str):
                    raise InputError(f"text {number} is {text!r}; give only texts or only pairs of texts")
                if (surrogate := _unpaired_surrogate(part)) is not None:
                    raise InputError(
                        f"text {number} has an unpaired surrogate at character {surrogate}, which is not valid Unicode; fix or "
                        "drop the text"
                    )
        return tokenize(
            self.tokenizer,
            *(map(list, zip(*texts)) if self.pair else [list(texts)]),
            truncation=True,
            max_length=self.max_length,
            return_attention_mask=False,
            return_token_type_ids=self.has_types,
            verbose=False,
        )

    def _cache_key(self, texts: Sequence[Text]) -> str:
        """Return a name that changes with everything that the ids depend on."""
        tokenizer = self.tokenizer
        probe = tokenize(tokenizer, "a", *(["a"] if self.pair else []), verbose=False)[
            "input_ids"
        ]  # its special tokens
        settings = [
            CACHE_VERSION, tokenizer_hash(tokenizer), probe, tokenizer.truncation_side, self.max_length, self.has_types
        ]  # fmt: skip
        return cache_key(settings, texts)


def _unpaired_surrogate(text: str) -> int | None:
    """Return the index of the first unpaired surrogate of a text, or None."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        return error.start
    return None


def useful_widths(lengths: np.ndarray, max_length: int) -> tuple[int, ...]:
    """Return the widths worth compiling a shape for: next to long rows, short ones save little."""
    longest, typical = int(lengths.max()), math.ceil(float(np.percentile(lengths, 99)))
    # Never beyond max_length: the model may not have more positions.
    last = min(next((width for width in WIDTHS if width >= longest), max_length), max_length)
    return *(width for width in WIDTHS if typical / 4 <= width < last), last


def check_widths(widths: Sequence[int], longest: int) -> tuple[int, ...]:
    """Return the given widths in order; raise InputError if the longest row, of ``longest`` tokens, does not fit."""
    unique = tuple(sorted(set(widths)))
    if not unique or unique[0] < 1 or unique[-1] < longest:
        raise InputError(
            f"widths are {tuple(widths)}, but the longest text has {longest} tokens; give positive widths, the largest at "
            f"least {longest}"
        )
    return unique


def _check_weights(values: Sequence[float], count: int) -> np.ndarray:
    weights = np.asarray(values, np.float32)
    if weights.shape != (count,) or not (np.isfinite(weights) & (weights >= 0)).all():
        raise InputError(
            f"sample_weight has shape {list(weights.shape)} for {count} texts; give one finite, non-negative number per text"
        )
    return weights
