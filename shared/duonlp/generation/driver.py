"""``generate`` and ``stream`` around the compiled loop: what happens in NumPy, once for both engines."""

import secrets
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from duonlp.errors import InputError
from duonlp.generation.config import DEFAULTS, GenerationConfig
from duonlp.generation.output import GenerationOutput, collect, join
from duonlp.generation.plan import Plan, make_plan
from duonlp.generation.prompt import Prompt, prepare_prompt, resolve_config
from duonlp.generation.source import decoder_prompt, prepare_source

UNSEEN = ("cache", "draft_cache", "hidden")
"""Entries of a state that no result is made of."""


@dataclass(frozen=True)
class Extras:
    """Arguments of ``generate`` that are no options of a GenerationConfig."""

    logits_processor: Sequence[Callable] = ()  # the caller's own (duonlp.generation.processors)
    assistant_model: Any = None  # a draft model
    negative_prompt_ids: Any = None
    negative_prompt_attention_mask: Any = None
    tokenizer: Any = None  # for stop_strings
    decoder_input_ids: Any = None  # what an encoder-decoder's texts begin with
    decoder_attention_mask: Any = None


@dataclass(frozen=True)
class Call:
    """One call, ready to run."""

    model: Any
    draft: Any
    config: GenerationConfig
    prompt: Prompt
    plan: Plan
    values: dict[str, Any]


def prepare(model, input_ids, attention_mask=None, generation_config=None, extras=None, options=None) -> list[Call]:
    """Check everything and lay it out: one call, or with speculative decoding one for each prompt.

    Raises:
        InputError: see jaxnlp.generation.generate.
    """
    extras = extras or Extras()
    config = resolve_config(model.config, model.generation_config, generation_config, options)
    if config.do_sample and config.seed is None:
        config = replace(config, seed=secrets.randbits(63))
    draft = extras.assistant_model
    _check_extras(model, config, extras)
    assisted = draft is not None or config.prompt_lookup_num_tokens is not None
    cfg, source, negatives = model.config, None, (extras.negative_prompt_ids, extras.negative_prompt_attention_mask)
    if cfg.decoder is not None:
        source = prepare_source(cfg, config, input_ids, attention_mask)
        input_ids, attention_mask = decoder_prompt(
            cfg, config, len(input_ids), extras.decoder_input_ids, extras.decoder_attention_mask
        )
        cfg = cfg.as_decoder()
    prompt = prepare_prompt(cfg, config, input_ids, attention_mask, *negatives)
    stops = None
    vocab_size = cfg.embedding.vocab_size
    if config.stop_strings:
        from duonlp.generation.stop_strings import StopStrings

        stops = StopStrings.build(extras.tokenizer, config.stop_strings, vocab_size)
    positions = cfg.max_length if draft is None else min(cfg.max_length, draft.config.as_decoder().max_length)
    proposals = config.num_assistant_tokens if draft is not None else 0

    def call(prompt, source):
        custom = tuple(extras.logits_processor or ())
        plan, values = make_plan(config, prompt, vocab_size, positions, custom, proposals, stops, source)
        return Call(model, draft, config, prompt, plan, values)

    whole = call(prompt, source)
    if not assisted:
        return [whole]
    # Texts would accept different numbers of proposals; so each goes alone.
    calls = []
    for i in range(len(prompt.original)):
        alone = prepare_prompt(cfg, config, prompt.original[i : i + 1], _mask_of(prompt, i))
        one = call(alone, None if source is None else source.row(i))
        keys = {"keys": whole.values["keys"][i : i + 1]} if config.do_sample else {}
        calls.append(replace(one, values=one.values | keys))
    return calls


def _mask_of(prompt: Prompt, row: int) -> np.ndarray:
    return prompt.attention_mask[row : row + 1, -prompt.original.shape[1] :]


def _check_extras(model, config: GenerationConfig, extras: Extras) -> None:
    draft, decoder = extras.assistant_model, model.config.decoder
    if decoder is None:
        for name in ("encoder_no_repeat_ngram_size", "encoder_repetition_penalty"):
            if getattr(config, name) != DEFAULTS[name]:
                raise InputError(
                    f"{name} is about the source of an encoder-decoder; a {model.config.model_type} has none"
                )
        if extras.decoder_input_ids is not None:
            raise InputError("decoder_input_ids are for an encoder-decoder; pass the prompt as input_ids")
    elif config.guidance_scale != 1.0:
        raise InputError("guidance_scale is for models without an encoder; leave it out")
    if extras.decoder_attention_mask is not None and extras.decoder_input_ids is None:
        raise InputError("decoder_attention_mask is of decoder_input_ids, and there are none; leave it out")
    for process in extras.logits_processor or ():
        if not callable(process):
            raise InputError(f"logits_processor holds {process!r}; give functions (ids, logits, step) -> logits")
    if config.stop_strings and extras.tokenizer is None:
        raise InputError("stop_strings are texts: pass the model's tokenizer, generate(..., tokenizer=tokenizer)")
    if draft is None:
        if config.prompt_lookup_num_tokens and config.guidance_scale != 1.0:
            raise InputError("guidance_scale and prompt_lookup_num_tokens do not go together; leave one out")
        return
    if config.prompt_lookup_num_tokens:
        raise InputError("assistant_model and prompt_lookup_num_tokens both propose tokens; leave one out")
    if config.strategy not in ("greedy", "sample") or config.num_return_sequences > 1 or config.guidance_scale != 1.0:
        raise InputError(
            "assistant_model is for greedy decoding and sampling of one text; pass num_beams=1 and num_return_sequences=1, and "
            "neither penalty_alpha nor guidance_scale"
        )
    if (draft.config.decoder is None) != (decoder is None):
        raise InputError("assistant_model must be of the model's kind: both with an encoder, or both without")
    sizes = [m.config.as_decoder().embedding.vocab_size for m in (model, draft)]
    if sizes[0] != sizes[1]:
        raise InputError(f"the model has {sizes[0]} tokens and assistant_model {sizes[1]}; they must share a tokenizer")


@dataclass(frozen=True)
class Programs:
    """A call's compiled parts, as the engine gives them."""

    start: Callable  # () -> state
    advance: Callable  # (state, until) -> state; the state that goes in is used up
    result: Callable  # (state) -> dict of NumPy arrays


def generate(load, model, input_ids, attention_mask, generation_config, streamer, extras, options):
    """The body of both packages' ``generate``; load(call) -> Programs."""
    calls = prepare(model, input_ids, attention_mask, generation_config, extras, options)
    config = calls[0].config
    if streamer is None:
        outputs = [_run(load(call), call) for call in calls]
        output = outputs[0] if len(outputs) == 1 else join(outputs, int(calls[0].values["padding"]))
        return output if config.returns_dict else output["sequences"]
    if config.returns_dict:
        raise InputError("a streamer gets ids alone; leave out streamer, or return_dict_in_generate and output_scores")
    pieces = []
    steps = stream(load, calls)
    streamer.put(calls[0].prompt.original)
    for ids in steps:
        for column in range(ids.shape[1]):
            streamer.put(ids[:, column])
        pieces.append(ids)
    streamer.end()
    prompts = np.repeat(calls[0].prompt.original, calls[0].plan.samples, axis=0)
    return np.concatenate([prompts, *pieces], axis=1).astype(np.int32)


def _run(programs: Programs, call: Call) -> GenerationOutput:
    state = programs.advance(programs.start(), call.values["new_tokens"])
    return collect(call, programs.result(state))


def stream(load, calls: list[Call]) -> Iterator[np.ndarray]:
    """New ids, int32 [texts, n], as soon as they are decided.

    Raises:
        InputError: the strategy decides nothing before its end, or there are several calls.
    """
    if calls[0].plan.strategy == "beam":
        raise InputError(
            f"num_beams={calls[0].plan.beams}: beams change until the end, so there is nothing to stream; pass num_beams=1"
        )
    if len(calls) > 1:
        raise InputError(f"speculative decoding streams one prompt at a time, not {len(calls)}")
    return _stream(load(calls[0]), calls[0])


def _stream(programs: Programs, call: Call) -> Iterator[np.ndarray]:
    state, given = programs.start(), 0
    texts = len(call.prompt.original) * call.plan.samples
    while True:
        out = programs.result(state)
        known = int(out["steps"])
        if known > given:
            yield out["ids"][:texts, given:known].astype(np.int32)
        elif known:
            return
        given = known
        state = programs.advance(state, np.int32(known + 1))
