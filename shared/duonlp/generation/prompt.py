"""Preparation of prompts for a compiled decoding loop."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from duonlp.config import TransformerConfig
from duonlp.errors import InputError
from duonlp.generation.config import GenerationConfig
from duonlp.inputs import check_inputs
from duonlp.positions import generation_position_ids
from duonlp.util.buckets import bucket


@dataclass(frozen=True)
class Prompt:
    """Prompts padded to bucket sizes, columns on the left.

    With classifier-free guidance, rows are the prompts followed by as many negative prompts.
    """

    input_ids: np.ndarray  # int32 [rows, columns]
    attention_mask: np.ndarray  # int32 [rows, columns], 0 on padding
    position_ids: np.ndarray  # int32 [rows, columns]
    next_position: np.ndarray  # int32 [rows], position of the first new token
    token_type_ids: np.ndarray | None  # int32 [rows, columns], 0 on padding
    filler: np.ndarray  # bool [prompts], True on rows that only pad the batch to its bucket
    original: np.ndarray  # int [B, T], the caller's input_ids

    @property
    def known_ids(self) -> np.ndarray:
        """int32 [prompts, columns]: the ids that logits processors see, -1 on padding."""
        prompts = len(self.filler)
        return np.where(self.attention_mask[:prompts] != 0, self.input_ids[:prompts], -1).astype(np.int32)

    def texts(self) -> list[np.ndarray]:
        """Return the ids of every prompt without padding, filler rows included."""
        return [ids[ids >= 0] for ids in self.known_ids]


def resolve_config(
    cfg: TransformerConfig,
    defaults: GenerationConfig,
    generation_config: Any = None,
    options: Mapping[str, Any] | None = None,
) -> GenerationConfig:
    """Return the options of one call.

    Args:
        cfg: Model configuration.
        defaults: The model's generation config, used if ``generation_config`` is None and for missing special ids.
        generation_config: A GenerationConfig, a dict, Transformers' GenerationConfig, or None.
        options: Options to change for this call.

    Raises:
        InputError: An option is unknown, a value is out of range, or options conflict.
    """
    if generation_config is None:
        config, positions = defaults, cfg.as_decoder().max_length
        if config.max_length is not None and config.max_length > positions:
            config = replace(config, max_length=positions)  # a stored length, which no caller chose
    elif isinstance(generation_config, GenerationConfig):
        config = generation_config.with_special_ids_from(defaults)
    else:
        stored = generation_config.to_dict() if hasattr(generation_config, "to_dict") else generation_config
        if not isinstance(stored, Mapping):
            raise InputError(f"generation_config is a {type(stored).__name__}; pass a GenerationConfig or a dict")
        config = GenerationConfig.for_model(cfg, stored)
    return config.with_options(**(options or {}))


def prepare_prompt(
    cfg: TransformerConfig,
    config: GenerationConfig,
    input_ids: ArrayLike,
    attention_mask: ArrayLike | None = None,
    negative_ids: ArrayLike | None = None,
    negative_mask: ArrayLike | None = None,
    token_type_ids: ArrayLike | None = None,
) -> Prompt:
    """Validate prompts and pad them to bucket sizes.

    Args:
        cfg: Model configuration.
        config: Options of the call.
        input_ids: int [B, T], left-padded if prompts differ in length.
        attention_mask: [B, T]; None derives it from the pad_token_id, unless that is an eos id (as
            Transformers does).
        negative_ids: int [B, U] or [1, U], negative prompts of classifier-free guidance; None uses each
            prompt's last token.
        negative_mask: [B, U] or [1, U], like attention_mask.
        token_type_ids: int [B, T] or None; new tokens have the type of their prompt's last token.

    Raises:
        InputError: A prompt is empty, consists of padding or ends in padding, ids are outside the
            vocabulary, or the model has no token types.
    """
    original, mask = _check_prompts(cfg, config, "input_ids", input_ids, attention_mask)
    types = None
    if token_type_ids is not None:
        check_inputs(cfg, "causal-lm", {"input_ids": original, "token_type_ids": token_type_ids}, cached=True)
        types = np.asarray(token_type_ids)
        if types.shape != original.shape:
            raise InputError(
                f"token_type_ids has shape {types.shape} and input_ids {original.shape}; they must be the same"
            )
        if config.guidance_scale != 1.0:
            raise InputError("token_type_ids cannot be combined with guidance_scale; omit one of them")
    parts = [(original, mask)]
    if config.guidance_scale != 1.0:
        if negative_ids is None:
            negative, negative_mask = original[:, -1:], np.ones((len(original), 1), np.int32)
        else:
            negative, negative_mask = _check_prompts(cfg, config, "negative_prompt_ids", negative_ids, negative_mask)
            if len(negative) == 1:
                negative = np.repeat(negative, len(original), 0)
                negative_mask = np.repeat(negative_mask, len(original), 0)
        if len(negative) != len(original):
            raise InputError(f"got {len(negative)} negative prompts for {len(original)} prompts; pass one per prompt")
        parts.append((negative, negative_mask))
    elif negative_ids is not None:
        raise InputError(
            "negative_prompt_ids has no effect without guidance_scale; pass guidance_scale=1.5, for example"
        )
    rows = bucket(len(original))
    columns = bucket(max(ids.shape[1] for ids, _ in parts))
    padded = [_pad(ids, mask, rows, columns) for ids, mask in parts]
    ids, mask = (np.concatenate(arrays) for arrays in zip(*padded))
    if types is not None:
        types = np.pad(types, ((0, rows - len(types)), (columns - types.shape[1], 0))).astype(np.int32)
    return Prompt(
        input_ids=ids,
        attention_mask=mask,
        # Counted from 0 in every family, RoBERTa included, as in GenerationMixin of Transformers 5.
        position_ids=generation_position_ids(mask),
        next_position=mask.sum(axis=1).astype(np.int32),
        token_type_ids=types,
        filler=np.arange(rows) >= len(original),
        original=original,
    )


def _check_prompts(
    cfg: TransformerConfig, config: GenerationConfig, name: str, input_ids: ArrayLike, attention_mask: ArrayLike | None
) -> tuple[np.ndarray, np.ndarray]:
    """Validate prompts and return their ids and mask [B, T]."""
    ids = np.asarray(input_ids)
    if ids.ndim == 1 and ids.size:
        raise InputError(f"{name} has shape {ids.shape}; prompts are [batch, length], so wrap a single one in a list")
    if ids.ndim == 2 and ids.shape[0] == 0:
        raise InputError(f"{name} has shape {ids.shape}; pass at least one prompt")
    if ids.size == 0:
        raise InputError("the prompt is empty; pass at least one token, such as the bos_token_id")
    pad = config.pad_token_id
    if attention_mask is None and pad is not None and pad not in config.eos_ids:
        attention_mask = ids != pad
    mask = as_mask(name, ids, attention_mask)
    check_inputs(cfg, "causal-lm", {"input_ids": ids}, cached=True)
    if (mask.sum(axis=1) < 1).any():
        raise InputError(f"prompt {int(mask.sum(axis=1).argmin())} is all padding; pass at least one token")
    if (mask[:, -1] == 0).any():
        raise InputError("a prompt ends in padding; pad prompts on the left: tokenizer.padding_side = 'left'")
    return ids, mask


def as_mask(name: str, ids: np.ndarray, mask: ArrayLike | None) -> np.ndarray:
    """Return an attention mask as int32 0 and 1; all ones if the mask is None.

    Args:
        name: Name of the ids, for the error message.
        ids: int [B, T].
        mask: [B, T] or None.

    Raises:
        InputError: The mask and the ids differ in shape.
    """
    ones = np.ones(ids.shape, np.int32) if mask is None else (np.asarray(mask) != 0).astype(np.int32)
    if ones.shape != ids.shape:
        raise InputError(f"attention_mask has shape {ones.shape} and {name} {ids.shape}; they must have the same shape")
    return ones


def _pad(ids: np.ndarray, mask: np.ndarray, rows: int, columns: int) -> tuple[np.ndarray, np.ndarray]:
    """Pad ids and mask [B, T] to [rows, columns]: filler rows at the end, columns on the left."""
    pad = ((0, rows - ids.shape[0]), (columns - ids.shape[1], 0))
    padded = np.pad(mask, pad)
    padded[ids.shape[0] :, -1] = 1  # filler rows hold one token: attention over no key at all is undefined
    return np.pad(ids, pad).astype(np.int32), padded.astype(np.int32)
