"""``generate`` and ``stream`` around the compiled loop: the NumPy side, written once for both engines."""

import secrets
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np
from numpy.typing import ArrayLike

from duonlp.errors import InputError, NonFiniteOutputError
from duonlp.generation.config import DEFAULTS, GenerationConfig, Processor
from duonlp.generation.options.validation import check_memory
from duonlp.generation.output import GenerationOutput, join
from duonlp.generation.plan import Plan, make_plan
from duonlp.generation.prompt import Prompt, prepare_prompt, resolve_config
from duonlp.generation.source import Source, decoder_prompt, document_logprobs, prepare_source
from duonlp.generation.stop_strings import StopStrings
from duonlp.generation.strategies.search import INVALID
from duonlp.util.frameworks import check_process

LOOP_ONLY = ("cache", "draft_cache", "hidden")
"""Entries of a state that ``result`` does not read."""

CLOCK_INTERVAL = 0.02
"""Seconds between looks at the clock with max_time, if a step takes less; each waits for the device."""


@dataclass(frozen=True)
class Extras:
    """Arguments of ``generate`` that are not options of a GenerationConfig."""

    logits_processor: Sequence[Processor] | None = ()  # the caller's own (duonlp.generation.processors)
    assistant_model: Any = None  # draft model of speculative decoding
    negative_prompt_ids: ArrayLike | None = None  # int [B or 1, U]
    negative_prompt_attention_mask: ArrayLike | None = None  # [B or 1, U]
    tokenizer: Any = None  # for stop_strings
    decoder_input_ids: ArrayLike | None = None  # int [B, U], decoder prompts of an encoder-decoder
    decoder_attention_mask: ArrayLike | None = None  # [B, U]
    token_type_ids: ArrayLike | None = None  # int [B, T], of the prompts
    doc_scores: ArrayLike | None = None  # float [texts, documents], of the sources of each text


@dataclass(frozen=True)
class Call:
    """One call of ``generate``, ready to run."""

    model: Any
    draft: Any
    config: GenerationConfig
    prompt: Prompt
    plan: Plan
    values: dict[str, Any]


def collect(call: Call, out: Mapping[str, Any], first: int = 0) -> GenerationOutput:
    """Return the results of one compiled loop without the rows and columns that pad to bucket sizes.

    Args:
        call: The call that was run.
        out: Result of duonlp.generation.loop.result, as NumPy.
        first: Index of its first prompt, for messages.

    Raises:
        NonFiniteOutputError: The model's logits were NaN or infinite.
    """
    plan, original = call.plan, call.prompt.original
    _check_logits(call, out, first)
    steps, texts = int(out["steps"]), len(original) * plan.returned
    prompts = np.repeat(original, plan.returned, axis=0)
    sequences = np.concatenate([prompts, out["ids"][:texts, :steps]], axis=1).astype(np.int32)
    rows = len(original) * (plan.beams if plan.strategy == "beam" else plan.samples)
    trims = {
        "logprobs": lambda x: x[:texts, :steps],
        "scores": lambda x: x[:steps, :rows],
        "logits": lambda x: x[:steps, :rows],
        "sequences_scores": lambda x: x[:texts],
        "beam_indices": lambda x: x[:texts, :steps],
        "passes": lambda x: np.reshape(x, (1,)),
    }
    recorded = {name: trim(np.asarray(out[name])) for name, trim in trims.items() if name in out}
    return GenerationOutput(sequences=sequences, **recorded)


def _check_logits(call: Call, out: Mapping[str, Any], first: int) -> None:
    """Raise NonFiniteOutputError if the logits of a prompt's text were NaN or infinite."""
    invalid = np.asarray(out["ids"])[: len(call.prompt.original) * call.plan.returned] == INVALID
    if invalid.any():
        row = first + int(invalid.any(axis=1).argmax()) // call.plan.returned
        raise NonFiniteOutputError(f"prompt {row}", "logits", row)


class Streamer(Protocol):
    """Receiver of generated ids, such as Transformers' TextStreamer."""

    def put(self, value: np.ndarray) -> None:
        """Receive the prompts [B, T], then the new ids [texts] of each step."""

    def end(self) -> None:
        """Handle the end of generation."""


def prepare(
    model: Any,
    input_ids: Any,
    attention_mask: ArrayLike | None = None,
    generation_config: Any = None,
    extras: Extras | None = None,
    options: Mapping[str, Any] | None = None,
) -> list[Call]:
    """Validate the arguments of ``generate`` and return its calls: one, or one per prompt with speculative
    decoding.

    Raises:
        InputError: See jaxnlp.generation.generate.
    """
    check_process()
    extras = extras or Extras()
    config = resolve_config(model.config, model.generation_config, generation_config, options)
    if config.do_sample and config.seed is None:
        config = replace(config, seed=secrets.randbits(63))
    draft = extras.assistant_model
    _check_extras(model, config, extras)
    _check_effects(model, config, extras, options or {})
    assisted = draft is not None or config.prompt_lookup_num_tokens is not None
    cfg, source, negatives = model.config, None, (extras.negative_prompt_ids, extras.negative_prompt_attention_mask)
    logprobs = None if extras.doc_scores is None else document_logprobs(extras.doc_scores, len(input_ids))
    if cfg.decoder is not None:
        documents = 1 if logprobs is None else len(logprobs)
        source = prepare_source(cfg, config, input_ids, attention_mask, documents)
        input_ids, attention_mask = decoder_prompt(
            cfg, config, len(input_ids) // documents, extras.decoder_input_ids, extras.decoder_attention_mask
        )
        cfg = cfg.as_decoder()
    prompt = prepare_prompt(cfg, config, input_ids, attention_mask, *negatives, extras.token_type_ids)
    stops = None
    vocab_size = cfg.embedding.vocab_size
    if config.stop_strings:
        stops = StopStrings.build(extras.tokenizer, config.stop_strings, vocab_size)
    positions = cfg.max_length if draft is None else min(cfg.max_length, draft.config.as_decoder().max_length)
    proposals = config.num_assistant_tokens if draft is not None else 0

    def make_call(prompt: Prompt, source: Source | None) -> Call:
        custom = tuple(extras.logits_processor or ())
        rows = len(prompt.input_ids) if logprobs is None else logprobs.size
        check_memory(config, cfg, rows, int(prompt.original.shape[1]), positions)
        plan, values = make_plan(config, prompt, vocab_size, positions, custom, proposals, stops, source, logprobs)
        return Call(model, draft, config, prompt, plan, values)

    batch = make_call(prompt, source)
    if not assisted:
        return [batch]
    # Texts accept different numbers of proposals, so each prompt runs alone.
    calls = []
    for i in range(len(prompt.original)):
        types = None if extras.token_type_ids is None else np.asarray(extras.token_type_ids)[i : i + 1]
        mask = prompt.attention_mask[i : i + 1, -prompt.original.shape[1] :]
        single = prepare_prompt(cfg, config, prompt.original[i : i + 1], mask, token_type_ids=types)
        call = make_call(single, None if source is None else source.row(i))
        keys = {"keys": batch.values["keys"][i : i + 1]} if config.do_sample else {}
        calls.append(replace(call, values=call.values | keys))
    return calls


def _check_extras(model: Any, config: GenerationConfig, extras: Extras) -> None:
    """Raise InputError for arguments that are invalid or conflict with the model or the options."""
    draft, decoder = extras.assistant_model, model.config.decoder
    if decoder is None:
        for name in ("encoder_no_repeat_ngram_size", "encoder_repetition_penalty"):
            if getattr(config, name) != DEFAULTS[name]:
                raise InputError(
                    f"{name} applies to the source of an encoder-decoder, but a {model.config.model_type} has none; omit it"
                )
        if extras.decoder_input_ids is not None:
            raise InputError("decoder_input_ids is only for encoder-decoders; pass the prompt as input_ids")
    elif config.guidance_scale != 1.0:
        raise InputError("guidance_scale is only for models without an encoder; omit it")
    if extras.doc_scores is not None:
        _check_documents(model, config, extras)
    if extras.token_type_ids is not None:
        for m in (model,) if draft is None else (model, draft):
            if "token_type_ids" not in {spec.name for spec in m.config.inputs}:
                raise InputError(
                    f"token_type_ids has no effect on a {m.config.model_type}, which has no token types; omit it"
                )
    if extras.decoder_attention_mask is not None and extras.decoder_input_ids is None:
        raise InputError("decoder_attention_mask needs decoder_input_ids; pass both or neither")
    for process in extras.logits_processor or ():
        if not callable(process):
            raise InputError(f"logits_processor contains {process!r}; pass functions (ids, logits, step) -> logits")
    if config.stop_strings and extras.tokenizer is None:
        raise InputError("stop_strings needs the model's tokenizer; pass generate(..., tokenizer=tokenizer)")
    if draft is None:
        return
    if config.prompt_lookup_num_tokens:
        raise InputError("assistant_model and prompt_lookup_num_tokens both propose tokens; omit one of them")
    if config.strategy not in ("greedy", "sample") or config.num_return_sequences > 1 or config.guidance_scale != 1.0:
        raise InputError(
            "assistant_model supports only greedy decoding and sampling of one sequence; pass num_beams=1 and "
            "num_return_sequences=1, and neither penalty_alpha nor guidance_scale"
        )
    if (draft.config.decoder is None) != (decoder is None):
        raise InputError("assistant_model and the model must both be encoder-decoders, or neither")
    sizes = [m.config.as_decoder().embedding.vocab_size for m in (model, draft)]
    if sizes[0] != sizes[1]:
        raise InputError(
            f"the model has a vocabulary of {sizes[0]} and assistant_model one of {sizes[1]}; they must share a tokenizer"
        )


def _check_documents(model: Any, config: GenerationConfig, extras: Extras) -> None:
    """Raise InputError for what cannot be combined with several documents per text."""
    if model.config.decoder is None:
        raise InputError(
            f"doc_scores weighs the sources of an encoder-decoder, but a {model.config.model_type} has none; omit it"
        )
    assisted = extras.assistant_model is not None or config.prompt_lookup_num_tokens is not None
    if assisted or config.strategy == "contrastive":
        raise InputError(
            "doc_scores cannot be combined with assistant_model, prompt_lookup_num_tokens or penalty_alpha; omit them"
        )
    for name in ("encoder_no_repeat_ngram_size", "encoder_repetition_penalty"):
        if getattr(config, name) != DEFAULTS[name]:
            raise InputError(f"{name} reads one source, but with doc_scores a text has several; omit it")


def _check_effects(model: Any, config: GenerationConfig, extras: Extras, options: Mapping[str, Any]) -> None:
    """Raise InputError for arguments of this call that cannot change anything."""
    conditions = {
        "num_assistant_tokens": ("assistant_model", extras.assistant_model is not None),
        "max_matching_ngram_size": ("prompt_lookup_num_tokens", config.prompt_lookup_num_tokens is not None),
        "decoder_start_token_id": ("an encoder-decoder", model.config.decoder is not None),
    }
    for name, (condition, holds) in conditions.items():
        if options.get(name) is not None and not holds:
            raise InputError(f"{name}={options[name]!r} has no effect without {condition}; omit it")
    if extras.negative_prompt_attention_mask is not None and extras.negative_prompt_ids is None:
        raise InputError("negative_prompt_attention_mask needs negative_prompt_ids; pass both or neither")


@dataclass(frozen=True)
class Programs:
    """The compiled programs of a call, provided by the engine."""

    start: Callable[[], Any]  # () -> state
    advance: Callable[[Any, Any], Any]  # (state, until) -> state; the input state is donated
    result: Callable[[Any], dict[str, Any]]  # (state) -> dict of NumPy arrays


def generate(
    load: Callable[[Call], Programs],
    model: Any,
    input_ids: Any,
    attention_mask: ArrayLike | None,
    generation_config: Any,
    streamer: Streamer | None,
    extras: Extras,
    options: Mapping[str, Any],
) -> np.ndarray | GenerationOutput:
    """Run ``generate`` for either engine; see jaxnlp.generation.generate.

    Args:
        load: Compile a call.
        model: The engine's model.
        input_ids: int [B, T].
        attention_mask: [B, T] or None.
        generation_config: A GenerationConfig, a dict, or None.
        streamer: Receiver of the ids of each step, or None.
        extras: Further arguments of ``generate``.
        options: Fields of GenerationConfig to change for this call.
    """
    start = time.monotonic()
    calls = prepare(model, input_ids, attention_mask, generation_config, extras, options)
    config = calls[0].config
    if streamer is None:
        outputs = [_run(load, call, start, first) for first, call in enumerate(calls)]
        output = outputs[0] if len(outputs) == 1 else join(outputs, int(calls[0].values["padding"]))
        return output if config.returns_dict else output["sequences"]
    if config.returns_dict:
        raise InputError(
            "a streamer receives only ids; omit streamer, or return_dict_in_generate, output_scores and output_logits"
        )
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


def _run(load: Callable[[Call], Programs], call: Call, start: float, first: int) -> GenerationOutput:
    """Run one call, whose first prompt has this index; ``start`` is the time from which max_time counts."""
    programs = load(call)
    state = programs.start()
    if call.config.max_time is None:
        state = programs.advance(state, call.values["new_tokens"])
    else:
        state = _advance_in_time(load, programs, call, state, start + call.config.max_time)
    return collect(call, programs.result(state), first)


def _advance_in_time(load: Callable[[Call], Programs], programs: Programs, call: Call, state: Any, end: float) -> Any:
    """Advance until the texts have ended or the first step after ``end``, as MaxTimeCriteria of Transformers does."""
    count, steps = int(call.values["new_tokens"]), 1
    n = int(state["n"])  # waits for the device
    while n < count and (n == 0 or time.monotonic() <= end):
        begin, until = time.monotonic(), min(n + steps, count)
        state = programs.advance(state, np.int32(until))
        reached = int(state["n"])
        if reached < until:  # all texts have ended
            return state
        seconds = (time.monotonic() - begin) / (reached - n)
        steps, n = max(1, int(CLOCK_INTERVAL / max(seconds, 1e-9))), reached
    if n < count and call.plan.strategy == "beam":  # one more step, which ends all beams
        last = load(replace(call, values=call.values | {"new_tokens": np.int32(n + 1)}))
        state = last.advance(state, np.int32(n + 1))
    return state


def stream(load: Callable[[Call], Programs], calls: list[Call]) -> Iterator[np.ndarray]:
    """Return an iterator of new ids, int32 [texts, n], as soon as they are final.

    Raises:
        InputError: The strategy is beam search, or there are several calls.
    """
    if calls[0].plan.strategy == "beam":
        raise InputError(
            f"num_beams={calls[0].plan.beams} cannot be streamed, since beams change until the end; pass num_beams=1"
        )
    if len(calls) > 1:
        raise InputError(f"speculative decoding streams one prompt at a time, but got {len(calls)}; pass one")
    return _stream(load(calls[0]), calls[0], time.monotonic())


def _stream(programs: Programs, call: Call, start: float) -> Iterator[np.ndarray]:
    state, yielded = programs.start(), 0
    texts = len(call.prompt.original) * call.plan.samples
    while True:
        out = programs.result(state)
        steps = int(out["steps"])
        _check_logits(call, out, 0)
        if steps > yielded:
            yield out["ids"][:texts, yielded:steps].astype(np.int32)
        elif steps:
            return
        if steps and call.config.max_time is not None and time.monotonic() - start > call.config.max_time:
            return
        yielded = steps
        state = programs.advance(state, np.int32(steps + 1))
