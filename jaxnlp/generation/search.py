"""Text generation: the decoding loop of duonlp.generation, compiled with XLA."""

import functools
import threading
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeAlias

import jax
import numpy as np
from flax import nnx

from duonlp.generation import GenerationConfig, GenerationOutput, driver
from duonlp.generation import loop as decoding
from duonlp.generation.strategies import search
from duonlp.typing import Array
from duonlp.util.frameworks import keep_heap
from jaxnlp import ops
from jaxnlp.inference import transposed
from jaxnlp.pretrained import Params, merge, split

if TYPE_CHECKING:
    from jaxnlp.model import Model


def generate(
    model: "Model", input_ids: Array, attention_mask: Array | None = None,
    generation_config: GenerationConfig | Mapping[str, Any] | None = None, *, decoder_input_ids: Array | None = None,
    decoder_attention_mask: Array | None = None, logits_processor: Sequence[Callable[..., Array]] | None = None,
    assistant_model: "Model | None" = None, negative_prompt_ids: Array | None = None,
    negative_prompt_attention_mask: Array | None = None, token_type_ids: Array | None = None,
    doc_scores: Array | None = None, tokenizer: Any = None, streamer: Any = None, **options: Any,
) -> np.ndarray | GenerationOutput:  # fmt: skip
    """Generate a continuation of each prompt, or with an encoder-decoder a text for each source.

    Args:
        model: Causal or encoder-decoder language model.
        input_ids: int [B, T]; prompts shorter than T are padded on the left, sources on the right.
        attention_mask: [B, T], 0 on padding. None recognizes padding by pad_token_id, unless this is also an
            end token.
        generation_config: A GenerationConfig or a dict; None for the model's own.
        decoder_input_ids: int [B, U], prompts of an encoder-decoder's decoder, by default its
            decoder_start_token_id. Length options count these prompts, and they are part of the result.
        decoder_attention_mask: [B, U], 0 on padding, which is on the left.
        logits_processor: Custom functions (ids, logits, step) -> logits; see duonlp.generation.processors.
            Reuse the function objects: new ones are compiled again.
        assistant_model: Smaller model with the same tokenizer that drafts tokens for speculative decoding; see
            duonlp.generation.strategies.assisted.
        negative_prompt_ids: int [B or 1, U], prompts that guidance_scale steers away from; by default the last
            token of each prompt.
        negative_prompt_attention_mask: [B or 1, U].
        token_type_ids: int [B, T], token types of the prompts, for models that have them; new tokens have the type of their
            prompt's last token.
        doc_scores: float [texts, K], for an encoder-decoder: input_ids are K consecutive sources for each text, documents of
            these scores, over which the probabilities of every next token are marginalized (RAG-Token).
        tokenizer: The model's tokenizer, required for stop_strings.
        streamer: Object with ``put(ids)`` and ``end()``, such as Transformers' TextStreamer; it receives the
            prompt, then each token.
        options: Fields of GenerationConfig that override those of generation_config.

    Returns:
        int32 [B * num_return_sequences, T + n], prompts and continuations, with pad tokens after the end of a
        text. With return_dict_in_generate, output_scores or output_logits, a GenerationOutput.

    Raises:
        InputError: A prompt is empty or too long, ids are outside the vocabulary, or an option is unknown,
            invalid or incompatible with another.
        NonFiniteOutputError: The model's logits were NaN or infinite.
    """
    extras = driver.Extras(
        logits_processor or (), assistant_model, negative_prompt_ids, negative_prompt_attention_mask, tokenizer,
        decoder_input_ids, decoder_attention_mask, token_type_ids, doc_scores,
    )  # fmt: skip
    return driver.generate(
        make_programs, model, input_ids, attention_mask, generation_config, streamer, extras, options
    )


def stream(
    model: "Model", input_ids: Array, attention_mask: Array | None = None,
    generation_config: GenerationConfig | Mapping[str, Any] | None = None, *, decoder_input_ids: Array | None = None,
    decoder_attention_mask: Array | None = None, logits_processor: Sequence[Callable[..., Array]] | None = None,
    assistant_model: "Model | None" = None, negative_prompt_ids: Array | None = None,
    negative_prompt_attention_mask: Array | None = None, token_type_ids: Array | None = None,
    doc_scores: Array | None = None, tokenizer: Any = None, **options: Any,
) -> Iterator[np.ndarray]:  # fmt: skip
    """Yield the new ids of :func:`generate`, int32 [B * num_return_sequences, n], as soon as they are final.

    Raises:
        InputError: See generate; also for beam search, where no token is final before the end.
    """
    extras = driver.Extras(
        logits_processor or (), assistant_model, negative_prompt_ids, negative_prompt_attention_mask, tokenizer,
        decoder_input_ids, decoder_attention_mask, token_type_ids, doc_scores,
    )  # fmt: skip
    return driver.stream(
        make_programs, driver.prepare(model, input_ids, attention_mask, generation_config, extras, options)
    )


def make_programs(call: driver.Call) -> driver.Programs:
    """Return the compiled programs of a call, shared by models of the same structure, since weights are arguments."""
    graphdef, params = _prepare(call.model)
    draft_graphdef, draft_params = (None, None) if call.draft is None else _prepare(call.draft)
    static = {"plan": call.plan.for_loop(), "graphdef": graphdef, "draft_graphdef": draft_graphdef}
    values = jax.device_put(call.values)

    def result(state):
        visible = {name: value for name, value in state.items() if name not in driver.LOOP_ONLY}
        return jax.device_get(_result(values, visible, plan=call.plan))

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


Prepared: TypeAlias = tuple[nnx.GraphDef, Params]
"""Structure and parameters of a model for decoding."""

_PREPARED: weakref.WeakKeyDictionary[Any, tuple[list[weakref.ref], Prepared]] = weakref.WeakKeyDictionary()
"""By model: references to the parameters it had, and what _prepare returned for them."""
_preparing = threading.Lock()
"""Held while a model is prepared, so that threads do not each copy its kernels."""


def _prepare(model: Any) -> Prepared:
    """Return a model's graphdef and params for decoding, cached until its parameters are replaced.

    On a CPU, the kernels are copied and transposed to [out, in]: with few rows, a product that contracts the
    last axis of both operands is faster there.
    """
    graphdef, params = split(model)
    leaves = jax.tree.leaves(params)
    with _preparing:
        if model in _PREPARED:
            refs, prepared = _PREPARED[model]
            if len(refs) == len(leaves) and all(ref() is leaf for ref, leaf in zip(refs, leaves)):
                return prepared
        on_cpu = jax.default_backend() == "cpu"
        if on_cpu:
            keep_heap()
        copy = transposed(model) if on_cpu else merge(graphdef, params)
        # These are part of the structure but do not affect decoding; models that differ in them would compile
        # again.
        copy.folder = copy.generation_config = None
        prepared = split(copy)
        _PREPARED[model] = [weakref.ref(leaf) for leaf in leaves], prepared
        return prepared
