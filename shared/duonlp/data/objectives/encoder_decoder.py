"""What the objectives of encoder-decoders have in common: a block becomes a source and a target, each of one length."""

from collections.abc import Sequence

import numpy as np

from duonlp.config import TransformerConfig
from duonlp.data.objectives.vocabulary import special_tokens
from duonlp.data.rows.order import check_seed
from duonlp.errors import InputError

IGNORED = -100
"""The label of a position that the loss leaves out."""


class EncoderDecoderObjective:
    """A block of text as what the encoder reads and what the decoder is to say.

    A subclass says how long both are (:meth:`lengths`) and makes one row's (:meth:`row`). What a row becomes follows from
    (seed, its position in the stream) alone, so that neither the rows beside it nor the batch matter.
    """

    head = "seq2seq-lm"
    name = "an encoder-decoder's objective"

    def __init__(self, tokenizer, decoder_start_token_id: int | None = None, *, starts_with_eos: bool = False):
        """Reads the special tokens.

        Args:
            tokenizer: a `transformers` fast tokenizer with end-of-text and padding tokens.
            decoder_start_token_id: what the decoder's inputs begin with, the model's; by default as in the paper's model.
            starts_with_eos: that default is the end-of-text token, not padding.

        Raises:
            InputError: a token that is needed is not there.
        """
        eos = tokenizer.eos_token_id if tokenizer.eos_token_id is not None else tokenizer.sep_token_id
        if eos is None:
            raise InputError(
                f"{self.name} needs a tokenizer with an eos_token, which ends every target; this one has none"
            )
        pad = tokenizer.pad_token_id
        if pad is None:
            raise InputError(f"{self.name} needs a tokenizer with a pad_token, which fills rows up; this one has none")
        self.eos_token_id, self.pad_token_id = int(eos), int(pad)
        default = eos if starts_with_eos else pad
        self.decoder_start_token_id = int(default if decoder_start_token_id is None else decoder_start_token_id)
        self._is_special = special_tokens(tokenizer)

    def lengths(self, block_length: int) -> tuple[int, int]:
        """Returns (S, U): tokens of a source and of a target, for blocks of that length; raises InputError if it cannot be."""
        raise NotImplementedError

    def check_model(self, config: TransformerConfig, block_length: int) -> None:
        """Raises InputError where an encoder-decoder starts its targets otherwise, or has too few positions for them."""
        start = None if config.decoder.starts_with_last else config.decoder.start_token_id
        if start not in (None, self.decoder_start_token_id):
            raise InputError(
                f"the objective's decoder inputs begin with {self.decoder_start_token_id}, and the model's "
                f"decoder_start_token_id is {start}; pass decoder_start_token_id={start} to the objective"
            )
        limits = (("sources", config.max_length), ("targets", config.decoder.max_length))
        for (what, limit), length in zip(limits, self.lengths(block_length)):
            if length > limit:
                raise InputError(
                    f"{self.name} makes {what} of {length} tokens of blocks of {block_length}, and the model has {limit} "
                    "positions for them; prepare shorter blocks, or take a model with more positions"
                )

    def row(self, ids: np.ndarray, special: np.ndarray, draws: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        """Returns a block's source and target, int [s] and [u], without the token that ends each.

        Args:
            ids: int32 [T].
            special: bool [T]: which of them are special tokens, which are never hidden.
            draws: the row's own random numbers.
        """
        raise NotImplementedError

    def __call__(
        self, input_ids: np.ndarray, segment_ids: np.ndarray | None, positions: np.ndarray, seed: int
    ) -> dict[str, np.ndarray]:
        """Returns sources and targets of blocks.

        Args:
            input_ids: int [B, T].
            segment_ids: None: a decoder cannot tell which document of its source it is in.
            positions: int [B], where each row stands in the training stream.
            seed: from 0 to 2**64 - 1.

        Returns:
            `input_ids` and `attention_mask`, int32 [B, S]; `decoder_input_ids` and `labels`, int32 [B, U]: the labels end
            with the end-of-text token and are -100 behind it, the decoder's inputs are they moved one to the right. S
            and U are those of :meth:`lengths`; what is longer is cut before its end.

        Raises:
            InputError: segment_ids are given, or an id is not in the tokenizer's vocabulary.
        """
        check_seed(seed)
        if segment_ids is not None:
            raise InputError(
                f"{self.name} takes blocks without segment_ids: source and target of a block are one text each; prepare the "
                "blocks with segment_ids=False (documents in a block stay apart by the token between them)"
            )
        ids = np.asarray(input_ids, dtype=np.int32)
        if ids.size and not (ids.min() >= 0 and ids.max() < len(self._is_special)):
            raise InputError(
                f"input ids go from {ids.min()} to {ids.max()}; the objective's tokenizer has ids below "
                f"{len(self._is_special)}: give the tokenizer that the blocks were made with"
            )
        special = self._is_special[ids]
        source_length, target_length = self.lengths(ids.shape[1])
        sources = np.full((len(ids), source_length), self.pad_token_id, dtype=np.int32)
        mask = np.zeros_like(sources)
        decoder_inputs = np.full((len(ids), target_length), self.pad_token_id, dtype=np.int32)
        labels = np.full_like(decoder_inputs, IGNORED)
        for row, position in enumerate(np.asarray(positions, dtype=np.uint64)):
            # A Philox generator for each (seed, position): its key holds both (Salmon et al. 2011).
            key = np.asarray([seed, position], dtype=np.uint64)
            source, target = self.row(ids[row], special[row], np.random.Generator(np.random.Philox(key=key)))
            mask[row, : _filled(sources[row], source, self.eos_token_id)] = 1
            end = _filled(labels[row], target, self.eos_token_id)
            decoder_inputs[row, 1:end] = labels[row, : end - 1]
        decoder_inputs[:, 0] = self.decoder_start_token_id
        return {"input_ids": sources, "attention_mask": mask, "decoder_input_ids": decoder_inputs, "labels": labels}

    def __repr__(self) -> str:
        """Its options: what a run is compared with when it is resumed."""
        options = {**self.options(), "decoder_start_token_id": self.decoder_start_token_id}
        return f"{type(self).__name__}({', '.join(f'{name}={value!r}' for name, value in options.items())})"

    def options(self) -> dict:
        """The options that it was made with, plain values."""
        return {}


def _filled(place: np.ndarray, ids: np.ndarray, last: int) -> int:
    """Writes ids, cut to leave room, and `last` behind them; returns how many."""
    length = min(len(ids), len(place) - 1)
    place[:length] = ids[:length]
    place[length] = last
    return length + 1


def sentences(ids: np.ndarray, special: np.ndarray, is_end: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Returns where a block's sentences begin and where they end (exclusive), and the document of each; int [n] each.

    A sentence ends behind a run of tokens that end sentences, and before and behind a special token, which also ends a
    document; special tokens are in no sentence.

    Args:
        ids: int [T].
        special: bool [T].
        is_end: bool [V], from duonlp.data.objectives.vocabulary.sentence_ends.
    """
    ends = is_end[ids]
    breaks = special[1:] | special[:-1] | (ends[:-1] & ~ends[1:])  # between t and t + 1
    first, last = np.concatenate([[True], breaks]) & ~special, np.concatenate([breaks, [True]]) & ~special
    starts = np.flatnonzero(first)
    return starts, np.flatnonzero(last) + 1, np.cumsum(special)[starts]


def joined(parts: Sequence[np.ndarray]) -> np.ndarray:
    """The parts end to end, int32; none of them: empty."""
    return np.concatenate(parts) if len(parts) else np.empty(0, dtype=np.int32)


def check_share(name: str, value: float) -> float:
    """Returns a share strictly between 0 and 1, or raises an InputError."""
    if not 0 < value < 1:
        raise InputError(f"{name} is {value}; it must be a share between 0 and 1, such as 0.15")
    return float(value)
