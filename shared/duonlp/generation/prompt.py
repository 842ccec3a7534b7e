"""Prompts made ready for a compiled loop."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from duonlp.errors import InputError
from duonlp.generation.config import GenerationConfig
from duonlp.inputs import check_inputs
from duonlp.positions import generation_position_ids
from duonlp.util.buckets import bucket


@dataclass(frozen=True)
class Prompt:
    """Prompts, rows and columns padded to buckets, columns on the left.

    With guidance, as many rows again hold the negative prompts.
    """

    input_ids: np.ndarray  # int32 [rows, columns]
    attention_mask: np.ndarray  # int32 [rows, columns], 0 on padding
    position_ids: np.ndarray  # int32 [rows, columns]
    next_position: np.ndarray  # int32 [rows], of the first new token
    filler: np.ndarray  # bool [prompts], True on rows that only fill a bucket
    original: np.ndarray  # the input_ids of the caller

    @property
    def known_ids(self) -> np.ndarray:
        """int32 [prompts, columns]: what logits processors see, -1 on padding."""
        prompts = len(self.filler)
        return np.where(self.attention_mask[:prompts] != 0, self.input_ids[:prompts], -1).astype(np.int32)

    def texts(self) -> list[np.ndarray]:
        """The ids of every prompt, fillers included, without padding."""
        return [ids[ids >= 0] for ids in self.known_ids]


def resolve_config(cfg, own: GenerationConfig, given=None, options: Mapping | None = None) -> GenerationConfig:
    """The options of one call.

    Args:
        cfg: the model's TransformerConfig.
        own: the model's generation config, which holds where nothing is given, and whose special ids fill in.
        given: a GenerationConfig, a dict, Transformers' own, or None.
        options: changes for this call.

    Raises:
        InputError: an unknown option, a value that is not allowed, options that cannot go together.
    """
    if given is None:
        config = own
    elif isinstance(given, GenerationConfig):
        config = given.for_ids_of(own)
    else:
        stored = given.to_dict() if hasattr(given, "to_dict") else given
        if not isinstance(stored, Mapping):
            raise InputError(f"generation_config is a {type(stored).__name__}; give a GenerationConfig or a dict")
        config = GenerationConfig.for_model(cfg, stored)
    return config.with_options(**(options or {}))


def prepare_prompt(
    cfg, config: GenerationConfig, input_ids, attention_mask=None, negative_ids=None, negative_mask=None
) -> Prompt:
    """Check prompts and pad them.

    Args:
        cfg: the model's TransformerConfig.
        input_ids: int [B, T], padded on the left where prompts differ in length.
        attention_mask: [B, T]; None tells padding by its id, if that is no eos (as Transformers does).
        negative_ids, negative_mask: what guidance leads away from: [B, U] or [1, U]; the last token of each prompt when
            None.

    Raises:
        InputError: an empty prompt, a prompt of padding alone, padding on the right, ids beyond the vocabulary.
    """
    original, mask = _checked(cfg, config, "input_ids", input_ids, attention_mask)
    parts = [(original, mask)]
    if config.guidance_scale != 1.0:
        if negative_ids is None:
            negative, negative_mask = original[:, -1:], np.ones((len(original), 1), np.int32)
        else:
            negative, negative_mask = _checked(cfg, config, "negative_prompt_ids", negative_ids, negative_mask)
            if len(negative) == 1:
                negative = np.repeat(negative, len(original), 0)
                negative_mask = np.repeat(negative_mask, len(original), 0)
        if len(negative) != len(original):
            raise InputError(
                f"there are {len(negative)} negative prompts and {len(original)} prompts; give one for each"
            )
        parts.append((negative, negative_mask))
    elif negative_ids is not None:
        raise InputError("negative_prompt_ids change nothing without guidance_scale; pass guidance_scale=1.5, say")
    rows = bucket(len(original))
    columns = bucket(max(ids.shape[1] for ids, _ in parts))
    padded = [_pad(ids, mask, rows, columns) for ids, mask in parts]
    ids, mask = (np.concatenate(arrays) for arrays in zip(*padded))
    return Prompt(
        input_ids=ids,
        attention_mask=mask,
        # Counted from 0 in every family, as GenerationMixin of Transformers 5 counts them, RoBERTa included.
        position_ids=generation_position_ids(mask),
        next_position=mask.sum(axis=1).astype(np.int32),
        filler=np.arange(rows) >= len(original),
        original=original,
    )


def _checked(cfg, config: GenerationConfig, name: str, ids, mask) -> tuple[np.ndarray, np.ndarray]:
    ids = np.asarray(ids)
    if ids.ndim == 1 and ids.size:
        raise InputError(f"{name} has shape {ids.shape}; prompts are [batch, length], wrap a single one in a list")
    if ids.ndim == 2 and ids.shape[0] == 0:
        raise InputError(f"{name} has shape {ids.shape}: there is no prompt; give at least one")
    if ids.size == 0:
        raise InputError("the prompt is empty; give at least one token, such as the bos_token_id")
    pad = config.pad_token_id
    if mask is None and pad is not None and pad not in config.eos_ids:
        mask = ids != pad
    mask = checked_mask(name, ids, mask)
    check_inputs(cfg, "causal-lm", {"input_ids": ids}, cached=True)
    if (mask.sum(axis=1) < 1).any():
        raise InputError(f"prompt {int(mask.sum(axis=1).argmin())} is padding alone; give at least one token")
    if (mask[:, -1] == 0).any():
        raise InputError("a prompt ends in padding; pad prompts on the left: tokenizer.padding_side = 'left'")
    return ids, mask


def checked_mask(name: str, ids: np.ndarray, mask) -> np.ndarray:
    """int32: 1 where a mask is not 0, or everywhere where there is none.

    Raises:
        InputError: the mask has another shape than the ids.
    """
    mask = np.ones(ids.shape, np.int32) if mask is None else (np.asarray(mask) != 0).astype(np.int32)
    if mask.shape != ids.shape:
        raise InputError(f"attention_mask has shape {mask.shape}, {name} {ids.shape}; they must be alike")
    return mask


def _pad(ids, mask, rows: int, columns: int) -> tuple[np.ndarray, np.ndarray]:
    pad = ((0, rows - ids.shape[0]), (columns - ids.shape[1], 0))
    padded = np.pad(mask, pad)
    padded[ids.shape[0] :, -1] = 1  # a row that fills a bucket holds a token, for a mask that hides all means nothing
    return np.pad(ids, pad).astype(np.int32), padded.astype(np.int32)
