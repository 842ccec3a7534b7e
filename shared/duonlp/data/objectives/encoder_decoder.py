"""Base class and helpers of the encoder-decoder objectives: a block becomes a source and a target of fixed lengths."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from duonlp.config import TransformerConfig
from duonlp.data.objectives.vocabulary import special_tokens
from duonlp.data.rows.order import check_seed
from duonlp.errors import InputError
from duonlp.heads import IGNORED

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast


class EncoderDecoderObjective:
    """Split a block of text into what the encoder reads and what the decoder predicts.

    Subclasses define the lengths of both (:meth:`lengths`) and how one row is split (:meth:`row`). A row depends only on
    (seed, position in the stream), never on its batch.

    Attributes:
        head: Head of the models that the objective trains.
        name: Name of the objective.
        eos_token_id: Id of the token that ends sources and targets.
        pad_token_id: Id of the padding token.
        decoder_start_token_id: Id of the first decoder input.
    """

    head = "seq2seq-lm"
    name = "an encoder-decoder's objective"

    def __init__(
        self,
        tokenizer: "PreTrainedTokenizerFast",
        decoder_start_token_id: int | None = None,
        *,
        starts_with_eos: bool = False,
    ):
        """Read the special tokens from the tokenizer.

        Args:
            tokenizer: A `transformers` fast tokenizer with end-of-text and padding tokens.
            decoder_start_token_id: First decoder input, equal to the model's. Defaults to the one in the paper's model.
            starts_with_eos: Whether that default is the end-of-text token rather than the padding token.

        Raises:
            InputError: The tokenizer lacks a token that the objective needs.
        """
        eos = tokenizer.eos_token_id if tokenizer.eos_token_id is not None else tokenizer.sep_token_id
        if eos is None:
            raise InputError(
                f"{self.name} needs a tokenizer with an eos_token to end every target, and this one has none; set it"
            )
        pad = tokenizer.pad_token_id
        if pad is None:
            raise InputError(f"{self.name} needs a tokenizer with a pad_token, and this one has none; set it")
        self.eos_token_id, self.pad_token_id = int(eos), int(pad)
        default = eos if starts_with_eos else pad
        self.decoder_start_token_id = int(default if decoder_start_token_id is None else decoder_start_token_id)
        self._is_special = special_tokens(tokenizer)

    def lengths(self, block_length: int) -> tuple[int, int]:
        """Return the source and target lengths (S, U) for blocks of `block_length` tokens.

        Raises:
            InputError: Blocks of this length cannot be split with the objective's options.
        """
        raise NotImplementedError

    def check_model(self, config: TransformerConfig, block_length: int) -> None:
        """Raise InputError if the model starts its targets with another token, or has too few positions."""
        assert config.decoder is not None, "check_model is for encoder-decoders"
        start = None if config.decoder.starts_with_last else config.decoder.start_token_id
        if start not in (None, self.decoder_start_token_id):
            raise InputError(
                f"the objective's decoder inputs begin with {self.decoder_start_token_id}, but the model's "
                f"decoder_start_token_id is {start}; pass decoder_start_token_id={start} to the objective"
            )
        limits = (("sources", config.max_length), ("targets", config.decoder.max_length))
        for (side, limit), length in zip(limits, self.lengths(block_length)):
            if length > limit:
                raise InputError(
                    f"{self.name} makes {side} of {length} tokens from blocks of {block_length}, but the model has only {limit} "
                    "positions for them; prepare shorter blocks or use a model with more positions"
                )

    def row(self, ids: np.ndarray, special: np.ndarray, draws: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        """Return the source and target of a block, int [s] and [u], without their final end-of-text tokens.

        Args:
            ids: int32 [T].
            special: bool [T], True at special tokens, which are never hidden.
            draws: Random generator of this row.
        """
        raise NotImplementedError

    def __call__(
        self, input_ids: np.ndarray, segment_ids: np.ndarray | None, positions: np.ndarray, seed: int
    ) -> dict[str, np.ndarray]:
        """Return the sources and targets of a batch of blocks.

        Args:
            input_ids: int [B, T].
            segment_ids: Must be None: a decoder cannot tell the documents of its source apart.
            positions: int [B], index of each row in the training stream.
            seed: Random seed in [0, 2**64).

        Returns:
            `input_ids` and `attention_mask`, int32 [B, S]; `decoder_input_ids` and `labels`, int32 [B, U]. Labels end with
            the end-of-text token, followed by -100; decoder inputs are the labels shifted right by one. S and U come
            from :meth:`lengths`; longer rows are truncated before their end-of-text token.

        Raises:
            InputError: segment_ids are given, or an id is outside the tokenizer's vocabulary.
        """
        check_seed(seed)
        if segment_ids is not None:
            raise InputError(
                f"{self.name} does not support blocks with segment_ids, because a block becomes one source and one target; "
                "prepare the blocks with segment_ids=False (a separator token still divides the documents)"
            )
        ids = np.asarray(input_ids, dtype=np.int32)
        check_ids(ids, len(self._is_special))
        special = self._is_special[ids]
        source_length, target_length = self.lengths(ids.shape[1])
        sources = np.full((len(ids), source_length), self.pad_token_id, dtype=np.int32)
        mask = np.zeros_like(sources)
        decoder_inputs = np.full((len(ids), target_length), self.pad_token_id, dtype=np.int32)
        labels = np.full_like(decoder_inputs, IGNORED)
        for row, position in enumerate(np.asarray(positions, dtype=np.uint64)):
            # One Philox generator per (seed, position), both in its key (Salmon et al. 2011).
            key = np.asarray([seed, position], dtype=np.uint64)
            source, target = self.row(ids[row], special[row], np.random.Generator(np.random.Philox(key=key)))
            mask[row, : _write_terminated(sources[row], source, self.eos_token_id)] = 1
            end = _write_terminated(labels[row], target, self.eos_token_id)
            decoder_inputs[row, 1:end] = labels[row, : end - 1]
        decoder_inputs[:, 0] = self.decoder_start_token_id
        return {"input_ids": sources, "attention_mask": mask, "decoder_input_ids": decoder_inputs, "labels": labels}

    def __repr__(self) -> str:
        """Return the class name and options, which a resumed run compares with those of its checkpoint."""
        options = {**self.options(), "decoder_start_token_id": self.decoder_start_token_id}
        return f"{type(self).__name__}({', '.join(f'{name}={value!r}' for name, value in options.items())})"

    def options(self) -> dict[str, Any]:
        """Return the constructor options of the objective as plain values."""
        return {}


def check_ids(ids: np.ndarray, vocabulary_size: int) -> None:
    """Raise InputError if an id is outside the vocabulary."""
    if ids.size and not (ids.min() >= 0 and ids.max() < vocabulary_size):
        raise InputError(
            f"input ids range from {ids.min()} to {ids.max()}, but the objective's tokenizer has ids below "
            f"{vocabulary_size}; use the tokenizer that the blocks were made with"
        )


def _write_terminated(out: np.ndarray, ids: np.ndarray, last: int) -> int:
    """Write `ids`, truncated to fit, and then `last` to `out`; return how many were written."""
    length = min(len(ids), len(out) - 1)
    out[:length] = ids[:length]
    out[length] = last
    return length + 1


def sentences(ids: np.ndarray, special: np.ndarray, is_end: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the starts, the exclusive ends and the document numbers of a block's sentences, int [n] each.

    A sentence ends after a run of sentence-ending tokens, and before and after a special token, which also ends a
    document. Special tokens belong to no sentence.

    Args:
        ids: int [T].
        special: bool [T].
        is_end: bool [V], from :func:`duonlp.data.objectives.vocabulary.sentence_ends`.
    """
    ends = is_end[ids]
    breaks = special[1:] | special[:-1] | (ends[:-1] & ~ends[1:])  # between t and t + 1
    first, last = np.concatenate([[True], breaks]) & ~special, np.concatenate([breaks, [True]]) & ~special
    starts = np.flatnonzero(first)
    return starts, np.flatnonzero(last) + 1, np.cumsum(special)[starts]


def concatenate_ids(parts: Sequence[np.ndarray]) -> np.ndarray:
    """Concatenate arrays of ids; without any, return an empty int32 array."""
    return np.concatenate(parts) if len(parts) else np.empty(0, dtype=np.int32)


def check_share(name: str, value: float) -> float:
    """Return `value` as a float, or raise InputError unless it is in (0, 1)."""
    if not 0 < value < 1:
        raise InputError(f"{name} is {value}; it must be between 0 and 1 (exclusive), such as 0.15")
    return float(value)
