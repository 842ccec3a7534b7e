"""Text with pieces missing, for an encoder-decoder to restore: T5's span corruption, and BART's text infilling."""

import math
from collections.abc import Sequence
from functools import lru_cache

import numpy as np

from duonlp.data.objectives import vocabulary
from duonlp.data.objectives.encoder_decoder import EncoderDecoderObjective, check_share, joined, sentences
from duonlp.errors import InputError


class SpanCorruption(EncoderDecoderObjective):
    """Say what was in the gaps (T5: Raffel et al. 2020, https://arxiv.org/abs/1910.10683, section 3.1.4).

    Spans of tokens are taken out, a sentinel (<extra_id_0>, <extra_id_1>, ...) left in the place of each; the target is
    each sentinel with the tokens that it stands for: "Thank you for inviting me to your party last week" becomes
    "Thank you <extra_id_0> me to your party <extra_id_1> week" and "<extra_id_0> for inviting <extra_id_1> last".
    Both end with the end-of-text token.

    As in T5's own code (random_spans_noise_mask), a length has one number of hidden tokens and one of spans, all masks of
    these numbers are equally likely, and a block begins with what stays and ends with what is hidden. So the target has
    no sentinel behind its last span, which the paper's figure draws, and no row needs padding.

    Special tokens are never hidden: a span that would cover one moves to the nearest place that has room for it. One for
    which there is none stays out, which happens where documents are a few tokens long: such a source is longer than
    the others and is cut.
    """

    name = "span-corruption"

    def __init__(
        self,
        tokenizer,
        *,
        noise_density: float = 0.15,
        mean_span: float = 3.0,
        decoder_start_token_id: int | None = None,
    ):
        """Finds the sentinels.

        Args:
            tokenizer: a `transformers` fast tokenizer with <extra_id_0>, <extra_id_1>, ...
            noise_density: the share of a block's tokens to hide, in (0, 1).
            mean_span: hidden tokens a span, on average; 1 or more.
            decoder_start_token_id: what the decoder's inputs begin with, the model's; by default the padding token (T5).

        Raises:
            InputError: an option is out of range, or a token that is needed is not there.
        """
        super().__init__(tokenizer, decoder_start_token_id)
        self.noise_density = check_share("noise_density", noise_density)
        if not (mean_span >= 1 and math.isfinite(mean_span)):
            raise InputError(f"mean_span is {mean_span}; it must be 1 token or more, such as 3.0")
        self.mean_span = float(mean_span)
        self._sentinels = vocabulary.sentinels(tokenizer)

    def options(self) -> dict:
        return {"noise_density": self.noise_density, "mean_span": self.mean_span}

    def lengths(self, block_length: int) -> tuple[int, int]:
        """Returns (S, U); T5's compute_input_and_target_lengths, which goes the other way, is :func:`block_length_for`.

        Raises:
            InputError: the block is too short for the options, or there are fewer sentinels than spans.
        """
        hidden, spans = _counts(block_length, self.noise_density, self.mean_span)
        if spans > len(self._sentinels):
            raise InputError(
                f"blocks of {block_length} tokens have {spans} spans at noise_density {self.noise_density} and mean_span "
                f"{self.mean_span}, so the tokenizer needs {spans} sentinels, <extra_id_0> to <extra_id_{spans - 1}>; it has "
                f"{len(self._sentinels)}: add them (extra_special_tokens of train_tokenizer), shorten blocks or lengthen spans"
            )
        return block_length - hidden + spans + 1, hidden + spans + 1

    def row(self, ids, special, draws):
        hidden, spans = _counts(len(ids), self.noise_density, self.mean_span)
        noise, clear = _composition(hidden, spans, draws), _composition(len(ids) - hidden, spans, draws)
        starts = np.cumsum(clear) + np.cumsum(noise) - noise
        mask = np.repeat(np.tile([False, True], spans), np.stack([clear, noise], axis=1).ravel())
        if (mask & special).any():
            mask = _moved(starts, noise, special)
        first = mask.copy()
        first[1:] &= ~mask[:-1]
        number = np.cumsum(first)  # of the span, from 1 on
        source = np.where(first, self._sentinels[np.maximum(number, 1) - 1], ids)[~mask | first]
        target = np.empty(mask.sum() + number[-1], dtype=np.int32)
        target[(np.cumsum(mask) + number - 1)[mask]] = ids[mask]
        target[(np.cumsum(mask) + number - 2)[first]] = self._sentinels[: number[-1]]
        return source, target


def block_length_for(source_length: int, noise_density: float = 0.15, mean_span: float = 3.0) -> int:
    """Returns the longest block whose source is at most that long: 568 for T5's 512, with targets of 114.

    Args:
        source_length: tokens that the encoder is to read, the end-of-text token included.
        noise_density, mean_span: of :class:`SpanCorruption`.

    Raises:
        InputError: it is too short for the options.
    """
    best, block_length = None, max(2, source_length - 1)
    # A block with more tokens never has a shorter source, but where an option leaves it no room for the spans.
    while block_length <= source_length / (1 - noise_density) + 2:
        hidden, spans = _counts(block_length, noise_density, mean_span)
        if block_length - hidden + spans + 1 <= source_length:
            best = block_length
        block_length += 1
    if best is None:
        raise InputError(f"source_length is {source_length}; take longer sources")
    return best


def _counts(length: int, noise_density: float, mean_span: float) -> tuple[int, int]:
    """Hidden tokens and spans of a block of that length, as T5 rounds them."""
    hidden = min(max(round(length * noise_density), 1), length - 1)
    spans = max(round(hidden / mean_span), 1)
    if length < 2 or length - hidden < spans:
        raise InputError(
            f"a block of {length} tokens, {noise_density:.0%} of them hidden in spans of {mean_span}, leaves fewer tokens than "
            "spans between them; take longer blocks or spans, or hide less"
        )
    return hidden, spans


def _composition(items: int, parts: int, draws: np.random.Generator) -> np.ndarray:
    """Positive numbers that sum to `items`, int [parts]; all such are equally likely."""
    cuts = np.sort(draws.choice(items - 1, parts - 1, replace=False, shuffle=False)) + 1
    return np.diff(cuts, prepend=0, append=items)


def _moved(starts: np.ndarray, lengths: np.ndarray, special: np.ndarray) -> np.ndarray:
    """The mask, bool [T], with each span that covers a special token where it covers none, and touches no other span."""
    before = np.concatenate([[0], np.cumsum(special)])
    bad = before[starts + lengths] > before[starts]
    mask, taken = np.zeros(len(special), dtype=bool), special.copy()

    def put(start, length):
        mask[start : start + length] = True
        taken[max(start - 1, 0) : start + length + 1] = True

    for start, length in zip(starts[~bad].tolist(), lengths[~bad].tolist()):
        put(start, length)
    for start, length in zip(starts[bad].tolist(), lengths[bad].tolist()):
        before = np.concatenate([[0], np.cumsum(taken)])
        free = np.flatnonzero(before[length:] == before[:-length])
        if free.size:
            put(int(free[np.argmin(np.abs(free - start))]), length)
    return mask


class TextInfilling(EncoderDecoderObjective):
    """Restore a text from which spans were taken (BART: Lewis et al. 2020, https://arxiv.org/abs/1910.13461, section 2.2).

    Spans with lengths from a Poisson distribution become one mask token each, whatever their length; one of length 0 puts
    a mask token where nothing is missing. With `permute_sentences`, sentences change places within their document before
    that. The target is the whole text as it was. Source and target begin with the tokenizer's bos token, where it has one
    that is not its eos token, and end with eos.

    As fairseq's denoising dataset, but that spans never overlap, so that a block of T tokens has exactly ceil(mask_share x T)
    of them hidden and one mask token for each span; each way to place the spans is equally likely. Special tokens are
    never hidden: a span goes on behind one as another.

    The number of spans differs from row to row: S has room for as many as one row in 10**9 has more of, whose remaining spans are
    left out.
    """

    name = "text-infilling"

    def __init__(
        self,
        tokenizer,
        *,
        mask_share: float = 0.3,
        mean_span: float = 3.0,
        permute_sentences: float = 0.0,
        sentence_ends: Sequence[str] | None = None,
        decoder_start_token_id: int | None = None,
    ):
        """Finds the mask token, and for permutations the tokens that end sentences.

        Args:
            tokenizer: a `transformers` fast tokenizer with a mask token.
            mask_share: the share of a block's tokens to hide, in (0, 1).
            mean_span: of the Poisson distribution; above 0.
            permute_sentences: the share of sentences that change places, 0 to 1; BART was trained with 1.
            sentence_ends: tokens that end sentences, as the vocabulary spells them; by default full stops, question marks
                and exclamation marks.
            decoder_start_token_id: what the decoder's inputs begin with, the model's; by default the eos token (BART).

        Raises:
            InputError: an option is out of range, or a token that is needed is not there.
        """
        super().__init__(tokenizer, decoder_start_token_id, starts_with_eos=True)
        self.mask_share = check_share("mask_share", mask_share)
        if not (mean_span > 0 and math.isfinite(mean_span)):
            raise InputError(f"mean_span is {mean_span}; it must be above 0, such as 3.0")
        if not 0 <= permute_sentences <= 1:
            raise InputError(f"permute_sentences is {permute_sentences}; it must be a share from 0 to 1")
        if getattr(tokenizer, "mask_token_id", None) is None:
            raise InputError(
                "text-infilling needs a tokenizer with a mask token; this one has none: add one "
                "(tokenizer.add_special_tokens({'mask_token': '<mask>'})) or train with span-corruption"
            )
        self.mean_span, self.permute_sentences = float(mean_span), float(permute_sentences)
        self.mask_token_id = int(tokenizer.mask_token_id)
        self.sentence_ends = None if sentence_ends is None else tuple(sentence_ends)
        self._ends = vocabulary.sentence_ends(tokenizer, sentence_ends) if permute_sentences else None
        bos = tokenizer.bos_token_id if tokenizer.bos_token_id is not None else tokenizer.cls_token_id
        self._begin = np.asarray([] if bos in (None, self.eos_token_id) else [bos], dtype=np.int32)

    def options(self) -> dict:
        return {
            "mask_share": self.mask_share, "mean_span": self.mean_span, "permute_sentences": self.permute_sentences,
            "sentence_ends": self.sentence_ends,
        }  # fmt: skip

    def lengths(self, block_length: int) -> tuple[int, int]:
        hidden = math.ceil(self.mask_share * block_length)
        around = len(self._begin) + 1
        return block_length - hidden + _most_spans(hidden, self.mean_span) + around, block_length + around

    def row(self, ids, special, draws):
        text = ids if self._ends is None else self._permuted(ids, special, draws)
        return joined([self._begin, self._infilled(text, special, draws)]), joined([self._begin, ids])

    def _infilled(self, ids: np.ndarray, special: np.ndarray, draws: np.random.Generator) -> np.ndarray:
        length = len(ids)
        ordinary = np.flatnonzero(~special)
        if not ordinary.size:
            return ids
        budget = math.ceil(self.mask_share * length)
        spans = draws.poisson(self.mean_span, _most_spans(budget, self.mean_span))
        budget = min(budget, len(ordinary))
        sums = np.cumsum(spans)
        spans = spans[: np.searchsorted(sums, budget) + 1]  # up to the first that fills it, which is cut
        if spans.sum() > budget:
            spans[-1] -= spans.sum() - budget
        spans = draws.permutation(spans)
        # Tokens that stay and spans in any order: a span's place, and how many tokens stay before it.
        places = np.sort(
            draws.choice(len(ordinary) - spans.sum() + len(spans), len(spans), replace=False, shuffle=False)
        )
        starts = places - np.arange(len(spans)) + np.cumsum(spans) - spans  # counted in ordinary tokens

        numbers = np.repeat(starts - (np.cumsum(spans) - spans), spans) + np.arange(spans.sum())
        hidden_at = ordinary[numbers]  # places in the block
        keep = np.ones(length + 1, dtype=bool)
        keep[hidden_at], keep[length] = False, False
        # A mask token stands before a span's first token, and before each that a special token parts from the last one.
        masks = np.bincount(np.append(ordinary, length)[starts], minlength=length + 1)
        same_span = np.ones(len(numbers), dtype=bool)
        same_span[(np.cumsum(spans) - spans)[spans > 0]] = False
        masks[hidden_at[1:][same_span[1:] & (np.diff(hidden_at) > 1)]] += 1
        infilled = np.full(masks.sum() + keep.sum(), self.mask_token_id, dtype=np.int32)
        infilled[(np.cumsum(masks) + np.cumsum(keep) - 1)[keep]] = ids[keep[:length]]
        return infilled

    def _permuted(self, ids: np.ndarray, special: np.ndarray, draws: np.random.Generator) -> np.ndarray:
        """The block with sentences in another order, each in its document; special tokens stay where they are."""
        starts, ends, documents = sentences(ids, special, self._ends)
        order = np.arange(len(starts))
        for document in np.unique(documents):
            own = np.flatnonzero(documents == document)
            moved = np.sort(draws.choice(own, math.ceil(self.permute_sentences * len(own)), replace=False))
            order[moved] = draws.permutation(moved)
        permuted = ids.copy()
        # A document's sentences fill the same places in any order.
        permuted[~special] = joined([ids[starts[i] : ends[i]] for i in order])
        return permuted


@lru_cache(maxsize=256)
def _most_spans(hidden: int, mean_span: float) -> int:
    """Spans that hide so many tokens but once in 10**9 rows: the sum of n Poisson lengths is Poisson with n times the mean."""
    spans = math.ceil(hidden / mean_span)
    while _poisson_below(hidden, spans * mean_span) > 1e-9:
        spans += 1
    return spans


def _poisson_below(count: int, mean: float) -> float:
    """The probability that a Poisson number is below `count`."""
    numbers = np.arange(count)
    logs = numbers * math.log(mean) - mean - np.concatenate([[0.0], np.cumsum(np.log(np.maximum(numbers[1:], 1)))])
    return float(np.exp(logs).sum())
