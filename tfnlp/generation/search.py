"""Continuing prompts: the loop of duonlp.generation as tf.while_loop, compiled by XLA."""

from collections.abc import Iterator

import numpy as np
import tensorflow as tf

from duonlp.generation import driver
from duonlp.generation import loop as decoding
from duonlp.generation.strategies import search
from duonlp.util.frameworks import keep_heap
from tfnlp import ops


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
    """A call's programs, made once for each model, plan and shapes."""
    start, advance, result = _functions(call)
    values = tf.nest.map_structure(tf.convert_to_tensor, call.values)

    def fetch(state):
        kept = {name: value for name, value in state.items() if name not in driver.LOOP_ONLY}
        return tf.nest.map_structure(lambda value: value.numpy(), result(values, kept))

    return driver.Programs(
        start=lambda: start(values),
        advance=lambda state, until: advance(values, state, tf.convert_to_tensor(until)),
        result=fetch,
    )


def _functions(call):
    """The three functions of a plan; the loop's serve every number of texts that is returned."""
    model, draft, plan = call.model, call.draft, call.plan
    loop = plan.for_loop()

    def searching(values, plan):
        return search.Search(ops, model, plan, values, draft)

    def make_loop():
        return (
            _compiled(lambda values: decoding.start(searching(values, loop))),
            _compiled(lambda values, state, until: decoding.advance(searching(values, loop), state, until)),
        )

    def make_result():
        return _compiled(lambda values, state: decoding.result(searching(values, plan), state))

    others = None if draft is None else (id(draft), *(id(variable) for variable in draft.variables))
    return *kept_with(model, (loop, others), make_loop), kept_with(model, ("result", plan, others), make_result)


def kept_with(model, key, make):
    """What ``make()`` gave for a key, kept with the model for the weights it has: quantisation and LoRA bring others."""
    weights = tuple(id(variable) for variable in model.variables)
    # Not as an attribute proper: Keras and TensorFlow would track and save it with the model.
    known = model.__dict__.get("_programs")
    if known is None or known[0] != weights:
        keep_heap()
        known = model.__dict__["_programs"] = weights, {}
    if key not in known[1]:
        known[1][key] = make()
    return known[1][key]


def _compiled(function):
    """The function through XLA, traced once for each shape of its arguments.

    As concrete functions: of a tf.function that is called with a few shapes, and of many that come from one line,
    TensorFlow suspects a mistake and says so.
    """
    concrete = {}

    def call(*arguments):
        key = tuple((x.shape, x.dtype) for x in tf.nest.flatten(arguments))
        if key not in concrete:
            traced = tf.function(function, jit_compile=True, autograph=False)
            concrete[key] = traced.get_concrete_function(*arguments)
        return concrete[key](*arguments)

    return call
