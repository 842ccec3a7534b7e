"""Text generation: the decoding loop of duonlp.generation as tf.while_loop, compiled with XLA."""

from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import tensorflow as tf

from duonlp.generation import GenerationConfig, GenerationOutput, driver
from duonlp.generation import loop as decoding
from duonlp.generation.strategies import search
from duonlp.typing import Array
from duonlp.util.frameworks import keep_heap
from tfnlp import ops
from tfnlp.inference import TRACING

if TYPE_CHECKING:
    from tfnlp.model import Model


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
    """Return the compiled programs of a call, cached by model, plan and shapes."""
    start, advance, result = _functions(call)
    values = tf.nest.map_structure(tf.convert_to_tensor, call.values)

    def fetch(state):
        visible = {name: value for name, value in state.items() if name not in driver.LOOP_ONLY}
        return tf.nest.map_structure(lambda value: value.numpy(), result(values, visible))

    return driver.Programs(
        start=lambda: start(values),
        advance=lambda state, until: advance(values, state, tf.convert_to_tensor(until)),
        result=fetch,
    )


def _functions(call: driver.Call) -> tuple[Callable, Callable, Callable]:
    """Return a plan's start, advance and result; the first two serve any number of returned sequences."""
    model, draft, plan = call.model, call.draft, call.plan
    loop = plan.for_loop()

    def searching(values, plan):
        return search.Search(ops, model, plan, values, draft)

    def make_loop():
        return (
            _compile(lambda values: decoding.start(searching(values, loop))),
            _compile(lambda values, state, until: decoding.advance(searching(values, loop), state, until)),
        )

    def make_result():
        return _compile(lambda values, state: decoding.result(searching(values, plan), state))

    draft_id = None if draft is None else (id(draft), *(id(variable) for variable in draft.variables))
    start, advance = get_program(model, (loop, draft_id), make_loop)
    return start, advance, get_program(model, ("result", plan, draft_id), make_result)


def get_program(model: Any, key: Hashable, make: Callable[[], Any]) -> Any:
    """Return ``make()``, cached on the model by key until its variables change, as with quantization and LoRA."""
    weights = tuple(id(variable) for variable in model.variables)
    with TRACING:
        # Through __dict__: as a regular attribute, Keras and TensorFlow would track it and save it with the model.
        cached = model.__dict__.get("_programs")
        if cached is None or cached[0] != weights:
            keep_heap()
            cached = model.__dict__["_programs"] = weights, {}
        programs = cached[1]
        if key not in programs:
            programs[key] = make()
        return programs[key]


def _compile(function: Callable[..., Any]) -> Callable[..., Any]:
    """Compile a function with XLA, tracing it once per combination of input shapes.

    It calls concrete functions, since TensorFlow warns about retracing if one tf.function is called with
    several shapes, or if several are created in the same line.
    """
    concrete: dict[tuple, Callable[..., Any]] = {}

    def call(*arguments: Any) -> Any:
        key = tuple((x.shape, x.dtype) for x in tf.nest.flatten(arguments))
        if key not in concrete:
            with TRACING:
                if key not in concrete:
                    traced = tf.function(function, jit_compile=True, autograph=False)
                    concrete[key] = traced.get_concrete_function(*arguments)
        return concrete[key](*arguments)

    return call
