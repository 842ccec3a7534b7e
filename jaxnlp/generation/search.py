"""Continuing prompts: the loop of duonlp.generation, compiled by XLA."""

import functools
import weakref
from collections.abc import Iterator

import jax
import numpy as np

from duonlp.generation import driver
from duonlp.generation import loop as decoding
from duonlp.generation.strategies import search
from duonlp.util.frameworks import keep_heap
from jaxnlp import ops
from jaxnlp.inference import transposed
from jaxnlp.pretrained import merge, split


def generate(
    model, input_ids, attention_mask=None, generation_config=None, *, decoder_input_ids=None, decoder_attention_mask=None,
    logits_processor=None, assistant_model=None, negative_prompt_ids=None, negative_prompt_attention_mask=None,
    tokenizer=None, streamer=None, **options,
):  # fmt: skip
    """Continue each prompt; an encoder-decoder writes to each source.

    Args:
        input_ids: int [B, T]; prompts shorter than T are padded on the left, sources on the right.
        attention_mask: [B, T], 0 on padding. None tells padding by the pad_token_id, unless that ends texts, too.
        generation_config: a GenerationConfig or a dict; the model's own when None.
        decoder_input_ids: int [B, U], what an encoder-decoder's texts begin with; by default the decoder_start_token_id. It
            is the prompt that lengths count, and that is returned.
        decoder_attention_mask: [B, U], 0 on padding on the left.
        logits_processor: functions (ids, logits, step) -> logits of your own (duonlp.generation.processors). Keep the same
            function objects: others compile again.
        assistant_model: a smaller model with the same tokenizer that proposes tokens (duonlp.generation.strategies.assisted).
        negative_prompt_ids: int [B or 1, U], what guidance_scale leads away from; by default the last token of each prompt.
        negative_prompt_attention_mask: [B or 1, U].
        tokenizer: for stop_strings.
        streamer: an object with ``put(ids)`` and ``end()``, as Transformers' TextStreamer: gets the prompt, then every token.
        options: fields of GenerationConfig to change for this call.

    Returns:
        int32 [B * num_return_sequences, T + n]: prompts and continuations; after the end of a text stands the pad token.
        Or a GenerationOutput where return_dict_in_generate, output_scores or output_logits is set.

    Raises:
        InputError: an empty or too long prompt, ids beyond the vocabulary, an unknown option, a value that is not allowed,
            options that cannot go together.
    """
    extras = driver.Extras(
        logits_processor, assistant_model, negative_prompt_ids, negative_prompt_attention_mask, tokenizer,
        decoder_input_ids, decoder_attention_mask,
    )  # fmt: skip
    return driver.generate(load, model, input_ids, attention_mask, generation_config, streamer, extras, options)


def stream(
    model, input_ids, attention_mask=None, generation_config=None, *, decoder_input_ids=None, decoder_attention_mask=None,
    logits_processor=None, assistant_model=None, negative_prompt_ids=None, negative_prompt_attention_mask=None,
    tokenizer=None, **options,
) -> Iterator[np.ndarray]:  # fmt: skip
    """The same, as an iterator of new ids, int32 [B * num_return_sequences, n], as soon as they are decided.

    Raises:
        InputError: as generate; and beam search, which decides nothing before its end.
    """
    extras = driver.Extras(
        logits_processor, assistant_model, negative_prompt_ids, negative_prompt_attention_mask, tokenizer,
        decoder_input_ids, decoder_attention_mask,
    )  # fmt: skip
    return driver.stream(load, driver.prepare(model, input_ids, attention_mask, generation_config, extras, options))


def load(call) -> driver.Programs:
    """A call's programs. They are shared between models of one configuration: weights are arguments."""
    graphdef, params = _prepared(call.model)
    draft_graphdef, draft_params = (None, None) if call.draft is None else _prepared(call.draft)
    static = {"plan": call.plan.for_loop(), "graphdef": graphdef, "draft_graphdef": draft_graphdef}
    values = jax.device_put(call.values)

    def result(state):
        kept = {name: value for name, value in state.items() if name not in driver.LOOP_ONLY}
        return jax.device_get(_result(values, kept, plan=call.plan))

    return driver.Programs(
        start=lambda: _start(params, draft_params, values, **static),
        advance=lambda state, until: _advance(params, draft_params, values, state, until, **static),
        result=result,
    )


_STATIC = ("plan", "graphdef", "draft_graphdef")


def _search(params, draft_params, values, plan, graphdef, draft_graphdef):
    draft = None if draft_graphdef is None else merge(draft_graphdef, draft_params)
    return search.Search(ops, merge(graphdef, params), plan, values, draft)


@functools.partial(jax.jit, static_argnames=_STATIC)
def _start(params, draft_params, values, *, plan, graphdef, draft_graphdef):
    return decoding.start(_search(params, draft_params, values, plan, graphdef, draft_graphdef))


@functools.partial(jax.jit, static_argnames=_STATIC, donate_argnames="state")
def _advance(params, draft_params, values, state, until, *, plan, graphdef, draft_graphdef):
    return decoding.advance(_search(params, draft_params, values, plan, graphdef, draft_graphdef), state, until)


@functools.partial(jax.jit, static_argnames="plan")
def _result(values, state, *, plan):
    return decoding.result(search.Search(ops, None, plan, values), state)


_PREPARED = weakref.WeakKeyDictionary()


def _prepared(model):
    """The model as (graphdef, params) for decoding, made anew when its parameters are others.

    On a CPU its kernels are copied, turned to [out, in]: with few rows, a product that contracts the last axis of both sides
    is the faster one there.
    """
    graphdef, params = split(model)
    leaves = jax.tree.leaves(params)
    known, prepared = _PREPARED.get(model, ((), None))
    if len(known) != len(leaves) or any(ref() is not leaf for ref, leaf in zip(known, leaves)):
        on_cpu = jax.default_backend() == "cpu"
        if on_cpu:
            keep_heap()
        copy = transposed(model) if on_cpu else merge(graphdef, params)
        # Part of the structure, and of no use here: models that differ in them would compile again.
        copy.folder = copy.generation_config = None
        prepared = split(copy)
        _PREPARED[model] = [weakref.ref(leaf) for leaf in leaves], prepared
    return prepared
