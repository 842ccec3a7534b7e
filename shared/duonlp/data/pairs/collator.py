"""A document and its summary as what an encoder-decoder is trained on: ids, cut and padded, and labels."""

from collections.abc import Sequence

import numpy as np

from duonlp import numpy_ops
from duonlp.data.objectives.language_modelling import IGNORED
from duonlp.data.pairs.summaries import Pair, has_text
from duonlp.data.rows.token_rows import TokenRows
from duonlp.errors import InputError
from duonlp.seq2seq import shift_right
from duonlp.util.buckets import bucket

SHORTEST = 16
"""Least length that rows are padded to: below it, one shape costs less than compiling several."""


class PairCollator:
    """Pairs to ids, and ids to the arrays that an encoder-decoder is trained on.

    Sources begin with the prefix; targets are tokenised as the tokenizer has it for targets (`text_target`: MarianMT's other
    vocabulary, mBART's other language). A tokenizer that ends nothing by itself, as GPT-2's, gets its end-of-text token
    behind targets: without it a model would never learn to end.

    Args:
        tokenizer: of `transformers`.
        config: the model's TransformerConfig, one with a decoder.
        max_source_length: tokens, special ones included, that sources are cut to; by default what the model has positions
            for, or the tokenizer's own limit where that is less.
        max_target_length: tokens that targets are cut to. None cuts none: a target that the decoder has no positions for
            is an error then.
        prefix: put before every document, such as "summarize: ".

    Raises:
        InputError: the model has no decoder, a length is out of range, or there is no token to pad with.
    """

    def __init__(
        self,
        tokenizer,
        config,
        max_source_length: int | None = None,
        max_target_length: int | None = None,
        prefix: str = "",
    ):
        if getattr(config, "decoder", None) is None:
            model = getattr(config, "model_type", config)
            raise InputError(
                f"the model {model!r} has no decoder of its own; pairs are for an encoder-decoder, such as T5"
            )
        if not isinstance(prefix, str):
            raise InputError(f"prefix is {prefix!r}; give a text")
        if config.pad_token_id is None:
            raise InputError("the model has no pad_token_id, which rows are filled up with; set it in config.json")
        self.tokenizer = tokenizer
        self.config = config
        self.prefix = prefix
        positions = [config.max_length, getattr(tokenizer, "model_max_length", None)]
        self.source_limit = _limit("max_source_length", max_source_length, config.max_length) or min(
            (limit for limit in positions if limit and limit < 10**9), default=None
        )
        self.max_target_length = _limit("max_target_length", max_target_length, config.decoder.max_length)
        self.target_limit = self.max_target_length or _known(config.decoder.max_length)

    def __call__(self, pairs: Sequence[Pair]) -> dict[str, np.ndarray]:
        """A batch of pairs, the first summary of each as its target.

        Returns:
            int32 input_ids and attention_mask [B, S], decoder_input_ids and labels [B, T]; labels are -100 on padding.

        Raises:
            InputError: as `encode`.
        """
        sources, targets = map(TokenRows.of, self.encode(pairs))
        return self.batch(sources, targets, np.arange(len(pairs)))

    def encode(self, pairs: Sequence[Pair], first: int = 0) -> tuple[list[list[int]], list[list[int]]]:
        """Ids of sources and of targets, special tokens and cutting included.

        Args:
            first: the number of the first of these pairs among all, for messages.

        Raises:
            InputError: a document or summary is empty or gives no tokens, a target does not fit, or an id is none of the
                model's; the message names the pair.
        """

        def named(number: int) -> str:
            return f"pair {first + number} (id {pairs[number].id!r})"

        for number, pair in enumerate(pairs):
            if not has_text(pair.document):
                raise InputError(f"{named(number)}: its document is empty, {pair.document!r}; leave the pair out")
            if not pair.summaries or not has_text(pair.summaries[0]):
                raise InputError(f"{named(number)}: its summary is empty, {pair.summaries!r}; leave the pair out")
        documents = [self.prefix + pair.document for pair in pairs]
        sources = token_ids(self.tokenizer, documents, self.source_limit)
        targets = token_ids(self.tokenizer, [pair.summaries[0] for pair in pairs], self.max_target_length, targets=True)
        bare = (
            len(token_ids(self.tokenizer, [self.prefix.rstrip()])[0]),
            len(token_ids(self.tokenizer, [""], targets=True)[0]),
        )
        words = self.config.embedding.vocab_size, self.config.decoder.embedding.vocab_size
        for number, (source, target) in enumerate(zip(sources, targets, strict=True)):
            sides = zip(("document", "summary"), (source, target), bare, words, strict=True)
            for what, ids, least, vocabulary in sides:
                if len(ids) <= least:
                    limit = self.source_limit if what == "document" else self.max_target_length
                    cause = f"once it is cut to {limit}" if limit and limit <= least else "the tokenizer gives it none"
                    raise InputError(
                        f"{named(number)}: its {what} has no tokens of its own: {cause}; leave the pair out"
                    )
                if max(ids) >= vocabulary:
                    raise InputError(
                        f"{named(number)}: its {what} has the id {max(ids)}, and the model has ids up to {vocabulary - 1}; give "
                        "the tokenizer that belongs to the model"
                    )
            if self.target_limit and len(target) > self.target_limit:
                raise InputError(
                    f"{named(number)}: its summary has {len(target)} tokens, and the decoder has positions for "
                    f"{self.target_limit}; pass max_target_length={self.target_limit} to cut such, or leave the pair out"
                )
        return sources, targets

    def widths(
        self, source_length: int, target_length: int, least: tuple[int, int] = (SHORTEST, SHORTEST)
    ) -> tuple[int, int]:
        """What rows of so many tokens are padded to: one of a few lengths, from `least` to the limits.

        Targets are short beside their sources: they are padded to powers of two, which makes fewer shapes for little work.
        """
        source = bucket(max(int(source_length), least[0]))
        target = 1 << (max(int(target_length), least[1]) - 1).bit_length()
        pairs = (source, source_length, self.source_limit), (target, target_length, self.target_limit)
        return tuple(width if limit is None else max(min(width, limit), int(length)) for width, length, limit in pairs)

    def batch(
        self, sources: TokenRows, targets: TokenRows, rows: np.ndarray, widths: tuple[int, int] | None = None
    ) -> dict[str, np.ndarray]:
        """The arrays of some rows; see `__call__`.

        Args:
            rows: int [B]. One of -1 fills the batch up: it repeats the first row, with labels of -100 alone.
            widths: S and T; by default the `widths` of these rows.
        """
        filling = rows < 0
        rows = np.where(filling, rows[0], rows)
        source_lengths, target_lengths = sources.lengths[rows], targets.lengths[rows]
        source_width, target_width = widths or self.widths(source_lengths.max(), target_lengths.max())
        labels = targets.padded(rows, target_width, IGNORED)  # [B, T]
        # Before what fills up loses its labels: mBART's targets begin with their own last token.
        decoder_input_ids = shift_right(numpy_ops, labels, self.config)
        return {
            "input_ids": sources.padded(rows, source_width, self.config.pad_token_id),  # [B, S]
            "attention_mask": (np.arange(source_width) < source_lengths[:, None]).astype(np.int32),
            "decoder_input_ids": np.asarray(decoder_input_ids, np.int32),
            "labels": np.where(filling[:, None], np.int32(IGNORED), labels),
        }


def token_ids(tokenizer, texts: Sequence[str], limit: int | None = None, *, targets: bool = False) -> list[list[int]]:
    """Ids of texts with special tokens, cut to `limit`.

    Args:
        targets: as what a decoder writes; where the tokenizer puts no end-of-text token in, it is put behind.
    """
    if not texts:
        return []
    name = "text_target" if targets else "text"

    def called(texts, limit):
        cut = {} if limit is None else {"truncation": True, "max_length": limit}
        return tokenizer(**{name: list(texts)}, verbose=False, return_attention_mask=False, **cut)["input_ids"]

    end = tokenizer.eos_token_id if targets else None
    if end is None or end in called([""], None)[0]:
        return called(texts, limit)
    return [[*ids, end] for ids in called(texts, None if limit is None else limit - 1)]


def _known(positions: int | None) -> int | None:
    """A number of positions; None for the huge one that stands for no limit."""
    return positions if positions and positions < 10**9 else None


def _limit(name: str, value: int | None, positions: int) -> int | None:
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)) or value < 2:
        raise InputError(f"{name} is {value!r}; it must be a whole number from 2 on: a token, and one that ends")
    if value > positions:
        raise InputError(f"{name} is {value}, and the model has positions for {positions}; ask for fewer")
    return int(value)
