"""Denoising objectives of encoder-decoders: T5's span corruption and BART's text infilling."""

import math
from collections.abc import Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np

from duonlp.data.objectives import vocabulary
from duonlp.data.objectives.encoder_decoder import EncoderDecoderObjective, check_share, concatenate_ids, sentences
from duonlp.errors import InputError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast


class SpanCorruption(EncoderDecoderObjective):
    """Predict the spans that were cut out of a text (T5: Raffel et al. 2020, https://arxiv.org/abs/1910.10683, 3.1.4).

    In the source, each span is replaced by a sentinel (<extra_id_0>, <extra_id_1>, ...); the target lists each sentinel
    followed by its span: "Thank you for inviting me to your party last week" becomes "Thank you <extra_id_0> me to your
    party <extra_id_1> week" and "<extra_id_0> for inviting <extra_id_1> last". Both end with the end-of-text token.

    As in T5's code (`random_spans_noise_mask`), the block length determines the number of hidden tokens and of spans, all
    masks with these numbers are equally likely, and a block begins with visible tokens and ends with hidden ones. The
    target therefore lacks the final sentinel drawn in the paper's figure, and no row needs padding.

    Special tokens are never hidden: a span that would cover one moves to the nearest place with room for it. Without such
    a place the span is dropped, which happens when documents are only a few tokens long; that source is then longer than
    the others and is truncated.
    """

    name = "span-corruption"

    def __init__(
        self,
        tokenizer: "PreTrainedTokenizerFast",
        *,
        noise_density: float = 0.15,
        mean_span: float = 3.0,
        decoder_start_token_id: int | None = None,
    ):
        """Read the sentinels from the tokenizer.

        Args:
            tokenizer: A `transformers` fast tokenizer with <extra_id_0>, <extra_id_1>, ...
            noise_density: Fraction of a block's tokens to hide, in (0, 1).
            mean_span: Mean number of tokens in a span, at least 1.
            decoder_start_token_id: First decoder input, equal to the model's. Defaults to the padding token (T5).

        Raises:
            InputError: An option is out of range, or the tokenizer lacks a token that the objective needs.
        """
        super().__init__(tokenizer, decoder_start_token_id)
        self.noise_density = check_share("noise_density", noise_density)
        if not (mean_span >= 1 and math.isfinite(mean_span)):
            raise InputError(f"mean_span is {mean_span}; it must be at least 1 token, such as 3.0")
        self.mean_span = float(mean_span)
        self._sentinels = vocabulary.sentinels(tokenizer)

    def options(self) -> dict[str, Any]:
        return {"noise_density": self.noise_density, "mean_span": self.mean_span}

    def lengths(self, block_length: int) -> tuple[int, int]:
        """Return the source and target lengths (S, U) for blocks of `block_length` tokens.

        T5's `compute_input_and_target_lengths` solves the inverse problem; that is :func:`block_length_for`.

        Raises:
            InputError: The blocks are too short for the options, or the tokenizer has fewer sentinels than spans.
        """
        hidden, spans = _span_counts(block_length, self.noise_density, self.mean_span)
        if spans > len(self._sentinels):
            raise InputError(
                f"blocks of {block_length} tokens have {spans} spans at noise_density {self.noise_density} and mean_span "
                f"{self.mean_span}, so the tokenizer needs {spans} sentinels, <extra_id_0> to <extra_id_{spans - 1}>; it has "
                f"{len(self._sentinels)}: add more (extra_special_tokens of train_tokenizer), shorten the blocks or lengthen "
                "the spans"
            )
        return block_length - hidden + spans + 1, hidden + spans + 1

    def row(self, ids: np.ndarray, special: np.ndarray, draws: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        hidden, spans = _span_counts(len(ids), self.noise_density, self.mean_span)
        noise, clear = _random_composition(hidden, spans, draws), _random_composition(len(ids) - hidden, spans, draws)
        starts = np.cumsum(clear) + np.cumsum(noise) - noise
        mask = np.repeat(np.tile([False, True], spans), np.stack([clear, noise], axis=1).ravel())  # [T]
        if (mask & special).any():
            mask = _move_spans_off_special(starts, noise, special)
        first = mask.copy()  # [T], the first token of each span
        first[1:] &= ~mask[:-1]
        number = np.cumsum(first)  # [T], 1-based number of the latest span
        source = np.where(first, self._sentinels[np.maximum(number, 1) - 1], ids)[~mask | first]
        target = np.empty(mask.sum() + number[-1], dtype=np.int32)
        target[(np.cumsum(mask) + number - 1)[mask]] = ids[mask]
        target[(np.cumsum(mask) + number - 2)[first]] = self._sentinels[: number[-1]]
        return source, target


def block_length_for(source_length: int, noise_density: float = 0.15, mean_span: float = 3.0) -> int:
    """Return the longest block length whose sources fit: 568 for T5's 512, with targets of 114.

    Args:
        source_length: Maximum number of encoder tokens, end-of-text token included.
        noise_density: Fraction of hidden tokens, as in :class:`SpanCorruption`.
        mean_span: Mean number of tokens in a span, as in :class:`SpanCorruption`.

    Raises:
        InputError: `source_length` is too small for the options.
    """
    best, block_length = None, max(2, source_length - 1)
    # Source lengths grow with block lengths, except where the options leave too little room for the spans.
    while block_length <= source_length / (1 - noise_density) + 2:
        hidden, spans = _span_counts(block_length, noise_density, mean_span)
        if block_length - hidden + spans + 1 <= source_length:
            best = block_length
        block_length += 1
    if best is None:
        raise InputError(f"source_length is {source_length}, too short for any block; use longer sources")
    return best


def _span_counts(length: int, noise_density: float, mean_span: float) -> tuple[int, int]:
    """Return the numbers of hidden tokens and of spans in a block, rounded as in T5."""
    hidden = min(max(round(length * noise_density), 1), length - 1)
    spans = max(round(hidden / mean_span), 1)
    if length < 2 or length - hidden < spans:
        raise InputError(
            f"a block of {length} tokens with {noise_density:.0%} hidden in spans of {mean_span} leaves fewer visible tokens "
            "than spans; use longer blocks or spans, or hide less"
        )
    return hidden, spans


def _random_composition(items: int, parts: int, draws: np.random.Generator) -> np.ndarray:
    """Draw positive integers that sum to `items`, int [parts], uniformly from all such compositions."""
    cuts = np.sort(draws.choice(items - 1, parts - 1, replace=False, shuffle=False)) + 1
    return np.diff(cuts, prepend=0, append=items)


def _move_spans_off_special(starts: np.ndarray, lengths: np.ndarray, special: np.ndarray) -> np.ndarray:
    """Return the mask of hidden tokens, bool [T], after moving spans so that none covers a special token or touches another."""
    specials_before = np.concatenate([[0], np.cumsum(special)])
    bad = specials_before[starts + lengths] > specials_before[starts]
    mask, taken = np.zeros(len(special), dtype=bool), special.copy()

    def place(start: int, length: int) -> None:
        mask[start : start + length] = True
        taken[max(start - 1, 0) : start + length + 1] = True

    for start, length in zip(starts[~bad].tolist(), lengths[~bad].tolist()):
        place(start, length)
    for start, length in zip(starts[bad].tolist(), lengths[bad].tolist()):
        taken_before = np.concatenate([[0], np.cumsum(taken)])
        free = np.flatnonzero(taken_before[length:] == taken_before[:-length])
        if free.size:
            place(int(free[np.argmin(np.abs(free - start))]), length)
    return mask


class TextInfilling(EncoderDecoderObjective):
    """Restore a text from which spans were cut out (BART: Lewis et al. 2020, https://arxiv.org/abs/1910.13461, 2.2).

    Spans have Poisson-distributed lengths, and each becomes a single mask token; a span of length 0 inserts a mask token
    where nothing is missing. With `permute_sentences`, sentences are first shuffled within their document. The target is
    the original text. Source and target begin with the tokenizer's bos token, if it has one that differs from its eos
    token, and end with eos.

    Follows fairseq's denoising dataset, except that spans never overlap: a block of T tokens has exactly
    ceil(mask_share x T) hidden tokens and one mask token per span, and every placement of the spans is equally likely.
    Special tokens are never hidden; a span that meets one continues behind it as another span.

    The number of spans varies between rows. S leaves room for as many as all but one in 10**9 rows have; the excess spans
    of such a row are dropped.
    """

    name = "text-infilling"

    def __init__(
        self,
        tokenizer: "PreTrainedTokenizerFast",
        *,
        mask_share: float = 0.3,
        mean_span: float = 3.0,
        permute_sentences: float = 0.0,
        sentence_ends: Sequence[str] | None = None,
        decoder_start_token_id: int | None = None,
    ):
        """Read the mask token and, for permutations, the sentence-ending tokens from the tokenizer.

        Args:
            tokenizer: A `transformers` fast tokenizer with a mask token.
            mask_share: Fraction of a block's tokens to hide, in (0, 1).
            mean_span: Mean of the Poisson distribution of span lengths, above 0.
            permute_sentences: Fraction of sentences to shuffle, in [0, 1]; BART was trained with 1.
            sentence_ends: Sentence-ending tokens as spelled in the vocabulary. Defaults to full stops, question marks and
                exclamation marks.
            decoder_start_token_id: First decoder input, equal to the model's. Defaults to the eos token (BART).

        Raises:
            InputError: An option is out of range, or the tokenizer lacks a token that the objective needs.
        """
        super().__init__(tokenizer, decoder_start_token_id, starts_with_eos=True)
        self.mask_share = check_share("mask_share", mask_share)
        if not (mean_span > 0 and math.isfinite(mean_span)):
            raise InputError(f"mean_span is {mean_span}; it must be above 0, such as 3.0")
        if not 0 <= permute_sentences <= 1:
            raise InputError(f"permute_sentences is {permute_sentences}; it must be between 0 and 1")
        if getattr(tokenizer, "mask_token_id", None) is None:
            raise InputError(
                "text-infilling needs a tokenizer with a mask token, and this one has none; add one "
                "(tokenizer.add_special_tokens({'mask_token': '<mask>'})) or train with span-corruption"
            )
        self.mean_span, self.permute_sentences = float(mean_span), float(permute_sentences)
        self.mask_token_id = int(tokenizer.mask_token_id)
        self.sentence_ends = None if sentence_ends is None else tuple(sentence_ends)
        self._ends = vocabulary.sentence_ends(tokenizer, sentence_ends) if permute_sentences else None
        bos = tokenizer.bos_token_id if tokenizer.bos_token_id is not None else tokenizer.cls_token_id
        self._begin = np.asarray([] if bos in (None, self.eos_token_id) else [bos], dtype=np.int32)

    def options(self) -> dict[str, Any]:
        return {
            "mask_share": self.mask_share, "mean_span": self.mean_span, "permute_sentences": self.permute_sentences,
            "sentence_ends": self.sentence_ends,
        }  # fmt: skip

    def lengths(self, block_length: int) -> tuple[int, int]:
        hidden = math.ceil(self.mask_share * block_length)
        added = len(self._begin) + 1  # bos and eos
        return block_length - hidden + _max_spans(hidden, self.mean_span) + added, block_length + added

    def row(self, ids: np.ndarray, special: np.ndarray, draws: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        text = ids if self._ends is None else self._permute_sentences(ids, special, self._ends, draws)
        infilled = self._mask_spans(text, special, draws)
        return concatenate_ids([self._begin, infilled]), concatenate_ids([self._begin, ids])

    def _mask_spans(self, ids: np.ndarray, special: np.ndarray, draws: np.random.Generator) -> np.ndarray:
        """Return the block with each span replaced by a mask token, int32 [s]."""
        length = len(ids)
        ordinary = np.flatnonzero(~special)
        if not ordinary.size:
            return ids
        budget = math.ceil(self.mask_share * length)
        spans = draws.poisson(self.mean_span, _max_spans(budget, self.mean_span))
        budget = min(budget, len(ordinary))
        sums = np.cumsum(spans)
        spans = spans[: np.searchsorted(sums, budget) + 1]  # the last one reaches the budget and is shortened to it
        if spans.sum() > budget:
            spans[-1] -= spans.sum() - budget
        spans = draws.permutation(spans)
        # Arrange visible tokens and spans in random order: a span's place minus the spans before it counts visible tokens.
        places = np.sort(
            draws.choice(len(ordinary) - spans.sum() + len(spans), len(spans), replace=False, shuffle=False)
        )
        starts = places - np.arange(len(spans)) + np.cumsum(spans) - spans  # [spans], indices into `ordinary`

        numbers = np.repeat(starts - (np.cumsum(spans) - spans), spans) + np.arange(spans.sum())
        hidden_at = ordinary[numbers]  # [budget], indices into the block
        keep = np.ones(length + 1, dtype=bool)
        keep[hidden_at], keep[length] = False, False
        # A mask token precedes a span's first token, and its next token behind any special token inside the span.
        masks = np.bincount(np.append(ordinary, length)[starts], minlength=length + 1)
        same_span = np.ones(len(numbers), dtype=bool)
        same_span[(np.cumsum(spans) - spans)[spans > 0]] = False
        masks[hidden_at[1:][same_span[1:] & (np.diff(hidden_at) > 1)]] += 1
        infilled = np.full(masks.sum() + keep.sum(), self.mask_token_id, dtype=np.int32)
        infilled[(np.cumsum(masks) + np.cumsum(keep) - 1)[keep]] = ids[keep[:length]]
        return infilled

    def _permute_sentences(
        self, ids: np.ndarray, special: np.ndarray, is_end: np.ndarray, draws: np.random.Generator
    ) -> np.ndarray:
        """Return the block with sentences shuffled within each document; special tokens stay in place."""
        starts, ends, documents = sentences(ids, special, is_end)
        order = np.arange(len(starts))
        for document in np.unique(documents):
            members = np.flatnonzero(documents == document)
            moved = np.sort(draws.choice(members, math.ceil(self.permute_sentences * len(members)), replace=False))
            order[moved] = draws.permutation(moved)
        permuted = ids.copy()
        # A document's sentences occupy the same positions in any order.
        permuted[~special] = concatenate_ids([ids[starts[i] : ends[i]] for i in order])
        return permuted


@lru_cache(maxsize=256)
def _max_spans(hidden: int, mean_span: float) -> int:
    """Return the number of spans that hides `hidden` tokens in all but one of 10**9 rows.

    The sum of n Poisson lengths is Poisson-distributed with n times the mean.
    """
    spans = math.ceil(hidden / mean_span)
    while _poisson_probability_below(hidden, spans * mean_span) > 1e-9:
        spans += 1
    return spans


def _poisson_probability_below(count: int, mean: float) -> float:
    """Return the probability that a Poisson variable is below `count`."""
    numbers = np.arange(count)
    logs = numbers * math.log(mean) - mean - np.concatenate([[0.0], np.cumsum(np.log(np.maximum(numbers[1:], 1)))])
    return float(np.exp(logs).sum())
