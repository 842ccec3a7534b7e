"""Turn documents and summaries into training inputs of an encoder-decoder: token ids, truncated and padded, and labels."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from duonlp import numpy_ops
from duonlp.config import TransformerConfig
from duonlp.data.pairs.summaries import Pair, has_text
from duonlp.data.rows.token_rows import TokenRows
from duonlp.errors import InputError
from duonlp.heads import IGNORED
from duonlp.inputs import shift_right
from duonlp.util.buckets import bucket
from duonlp.util.tokenization import LINE_BREAK, has_line_break_token, tokenize

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

SHORTEST = 16
"""Minimum length to pad to; one shape for all shorter rows costs less than compiling several."""

UNLIMITED = 10**9
"""From here on, a number of positions stands for no limit."""


class PairCollator:
    """Tokenize pairs, and batch the ids into training inputs of an encoder-decoder.

    Sources begin with the prefix. Targets are tokenized as targets (`text_target`: MarianMT's second vocabulary, mBART's
    target language). If the tokenizer adds no end-of-text token, as GPT-2's, one is appended to targets; otherwise the
    model would never learn to stop.

    Args:
        tokenizer: A `transformers` tokenizer.
        config: Configuration of a model with a decoder.
        max_source_length: Maximum number of source tokens, special tokens included; longer sources are truncated. Defaults
            to the model's positions or the tokenizer's own limit, whichever is smaller.
        max_target_length: Maximum number of target tokens; longer targets are truncated. If None, targets are not
            truncated, and one that exceeds the decoder's positions is an error.
        prefix: Text to prepend to every document, such as "summarize: ".

    Attributes:
        pad_token_id: Id that sources are padded with.
        source_limit: Maximum number of source tokens, or None.
        target_limit: Maximum number of target tokens, or None.

    Raises:
        InputError: The model has no decoder or no padding token, or a length is out of range.
    """

    def __init__(
        self,
        tokenizer: "PreTrainedTokenizerBase",
        config: TransformerConfig,
        max_source_length: int | None = None,
        max_target_length: int | None = None,
        prefix: str = "",
    ):
        decoder = getattr(config, "decoder", None)
        if decoder is None:
            model = getattr(config, "model_type", config)
            raise InputError(f"the model {model!r} has no decoder; use an encoder-decoder, such as T5")
        if not isinstance(prefix, str):
            raise InputError(f"prefix is {prefix!r}; it must be a str")
        if config.pad_token_id is None:
            raise InputError("the model has no pad_token_id to pad rows with; set it in config.json")
        self.tokenizer = tokenizer
        self.config = config
        self.pad_token_id = int(config.pad_token_id)
        self.prefix = prefix
        positions = [config.max_length, getattr(tokenizer, "model_max_length", None)]
        self.source_limit = _check_length("max_source_length", max_source_length, config.max_length) or min(
            (limit for limit in positions if limit and limit < UNLIMITED), default=None
        )
        self.max_target_length = _check_length("max_target_length", max_target_length, decoder.max_length)
        self.target_limit = self.max_target_length or _finite(decoder.max_length)
        self._vocabulary_sizes = config.embedding.vocab_size, decoder.embedding.vocab_size

    def __call__(self, pairs: Sequence[Pair]) -> dict[str, np.ndarray]:
        """Return a batch of pairs, with the first summary of each as its target.

        Returns:
            int32 input_ids and attention_mask [B, S], decoder_input_ids and labels [B, T]; labels are -100 on padding.

        Raises:
            InputError: A pair is invalid, see `encode`.
        """
        sources, targets = map(TokenRows.of, self.encode(pairs))
        return self.batch(sources, targets, np.arange(len(pairs)))

    def encode(self, pairs: Sequence[Pair], first: int = 0) -> tuple[list[list[int]], list[list[int]]]:
        """Return the token ids of sources and targets, truncated, special tokens included.

        Args:
            pairs: Pairs to tokenize.
            first: Number of the first of these pairs in the data, for messages.

        Raises:
            InputError: A document or summary is empty or has no tokens, a target is too long, or an id exceeds the model's
                vocabulary.
        """

        def describe(number: int) -> str:
            return f"pair {first + number} (id {pairs[number].id!r})"

        for number, pair in enumerate(pairs):
            if not has_text(pair.document):
                raise InputError(f"{describe(number)}: its document is empty, {pair.document!r}; drop the pair")
            if not pair.summaries or not has_text(pair.summaries[0]):
                raise InputError(f"{describe(number)}: its summary is empty, {pair.summaries!r}; drop the pair")
        documents = [self.prefix + pair.document for pair in pairs]
        sources = token_ids(self.tokenizer, documents, self.source_limit)
        targets = token_ids(self.tokenizer, [pair.summaries[0] for pair in pairs], self.max_target_length, targets=True)
        # Tokens without any text: the prefix and special tokens.
        overheads = (
            len(token_ids(self.tokenizer, [self.prefix.rstrip()])[0]),
            len(token_ids(self.tokenizer, [""], targets=True)[0]),
        )
        for number, (source, target) in enumerate(zip(sources, targets, strict=True)):
            sides = zip(("document", "summary"), (source, target), overheads, self._vocabulary_sizes, strict=True)
            for side, ids, overhead, vocabulary_size in sides:
                if len(ids) <= overhead:
                    limit = self.source_limit if side == "document" else self.max_target_length
                    cause = (
                        f"once truncated to {limit}" if limit and limit <= overhead else "the tokenizer returns none"
                    )
                    raise InputError(f"{describe(number)}: its {side} has no tokens of its own: {cause}; drop the pair")
                if max(ids) >= vocabulary_size:
                    raise InputError(
                        f"{describe(number)}: its {side} has the id {max(ids)}, but the model's ids end at "
                        f"{vocabulary_size - 1}; use the model's own tokenizer"
                    )
            if self.target_limit and len(target) > self.target_limit:
                raise InputError(
                    f"{describe(number)}: its summary has {len(target)} tokens, but the decoder has only "
                    f"{self.target_limit} positions; pass max_target_length={self.target_limit} to truncate, or drop the pair"
                )
        return sources, targets

    def widths(
        self, source_length: int, target_length: int, least: tuple[int, int] = (SHORTEST, SHORTEST)
    ) -> tuple[int, int]:
        """Return the source and target widths that rows of these lengths are padded to.

        Widths are from a small set, between `least` and the limits. Targets are padded to powers of two: they are short
        next to their sources, so fewer shapes cost little extra work.
        """
        source = bucket(max(int(source_length), least[0]))
        target = 1 << (max(int(target_length), least[1]) - 1).bit_length()
        if self.source_limit is not None:
            source = max(min(source, self.source_limit), int(source_length))
        if self.target_limit is not None:
            target = max(min(target, self.target_limit), int(target_length))
        return source, target

    def batch(
        self, sources: TokenRows, targets: TokenRows, rows: np.ndarray, widths: tuple[int, int] | None = None
    ) -> dict[str, np.ndarray]:
        """Return the arrays of a batch of rows, as `__call__` does.

        Args:
            sources: Token ids of all sources.
            targets: Token ids of all targets.
            rows: int [B], indices of the rows. -1 is filler: it repeats the first row, with labels of -100.
            widths: Widths S and T to pad to. Defaults to the `widths` of these rows.
        """
        filling = rows < 0
        rows = np.where(filling, rows[0], rows)
        source_lengths, target_lengths = sources.lengths[rows], targets.lengths[rows]
        source_width, target_width = widths or self.widths(source_lengths.max(), target_lengths.max())
        labels = targets.padded(rows, target_width, IGNORED)  # [B, T]
        # Before the labels of filler are removed: mBART's decoder inputs begin with the last token of the target.
        decoder_input_ids = shift_right(numpy_ops, labels, self.config)
        return {
            "input_ids": sources.padded(rows, source_width, self.pad_token_id),  # [B, S]
            "attention_mask": (np.arange(source_width) < source_lengths[:, None]).astype(np.int32),
            "decoder_input_ids": np.asarray(decoder_input_ids, np.int32),
            "labels": np.where(filling[:, None], np.int32(IGNORED), labels),
        }


def token_ids(
    tokenizer: "PreTrainedTokenizerBase", texts: Sequence[str], limit: int | None = None, *, targets: bool = False
) -> list[list[int]]:
    """Return the token ids of texts, special tokens included.

    Args:
        tokenizer: A `transformers` tokenizer.
        texts: Texts to tokenize.
        limit: Maximum number of tokens; longer texts are truncated.
        targets: Whether to tokenize decoder targets. An end-of-text token is appended if the tokenizer adds none, and line
            breaks become PEGASUS' token for them if there is one.
    """
    if not texts:
        return []
    name = "text_target" if targets else "text"
    if targets and has_line_break_token(tokenizer):
        texts = [text.replace("\n", LINE_BREAK) for text in texts]

    def encode(texts: Sequence[str], limit: int | None) -> list[list[int]]:
        truncation = {} if limit is None else {"truncation": True, "max_length": limit}
        keywords = {name: list(texts), "verbose": False, "return_attention_mask": False, **truncation}
        return tokenize(tokenizer, **keywords)["input_ids"]

    end = tokenizer.eos_token_id if targets else None
    if end is None or end in encode([""], None)[0]:
        return encode(texts, limit)
    return [[*ids, end] for ids in encode(texts, None if limit is None else limit - 1)]


def _finite(positions: int | None) -> int | None:
    """Return a number of positions, or None if it stands for no limit."""
    return positions if positions and positions < UNLIMITED else None


def _check_length(name: str, value: int | None, positions: int) -> int | None:
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)) or value < 2:
        raise InputError(
            f"{name} is {value!r}; it must be an integer of at least 2, for one token and an end-of-text token"
        )
    if value > positions:
        raise InputError(f"{name} is {value}, but the model has only {positions} positions; use at most {positions}")
    return int(value)
