"""Text generation inside a SavedModel, for serving without Python."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import keras
import numpy as np
import tensorflow as tf

from duonlp.errors import InputError
from duonlp.generation import GenerationConfig, driver
from duonlp.generation import loop as decoding
from duonlp.generation.strategies import search
from tfnlp import ops

if TYPE_CHECKING:
    from tfnlp.model import Model


def export_generate(
    model: "Model", filepath: str | Path, *, batch_size: int = 1, prompt_length: int,
    generation_config: GenerationConfig | Mapping[str, Any] | None = None, **options: Any,
) -> None:  # fmt: skip
    """Write a SavedModel with an endpoint ``generate``, which runs the same compiled loop as ``model.generate``.

    The endpoint takes ``input_ids`` and ``attention_mask``, int32 [batch_size, prompt_length]: prompts padded
    on the left, or sources of an encoder-decoder padded on the right. With do_sample it also takes ``keys``,
    uint32 [batch_size * num_return_sequences, 2], two random words per text (or
    duonlp.generation.threefry.row_keys, which reproduces ``generate``). It returns ``sequences``, int32
    [batch_size * num_return_sequences, prompt_length (1 for an encoder-decoder) + new tokens], with pad tokens
    after the end of a text.

    Args:
        model: Causal or encoder-decoder language model.
        filepath: Folder to create.
        batch_size: Number of prompts per call.
        prompt_length: Length of the padded prompts.
        generation_config: A GenerationConfig or a dict; None for the model's own.
        options: Fields of GenerationConfig, such as max_new_tokens and num_beams.

    Raises:
        InputError: See ``generate``; also for stop_strings, guidance_scale, prompt_lookup_num_tokens and max_time,
            which depend on what the endpoint does not have.
    """
    serve, signature = generate_function(model, batch_size, prompt_length, generation_config, **options)
    archive = keras.export.ExportArchive()
    archive.track(model)
    archive.add_endpoint("generate", tf.function(serve, signature, jit_compile=True, autograph=False))
    archive.write_out(filepath, verbose=False)


def generate_function(
    model: "Model", batch_size: int, prompt_length: int,
    generation_config: GenerationConfig | Mapping[str, Any] | None = None, **options: Any,
) -> tuple[Callable[..., dict[str, tf.Tensor]], list[tf.TensorSpec]]:  # fmt: skip
    """Return the function of the endpoint and its signature; see :func:`export_generate`."""
    ids = np.ones((batch_size, prompt_length), np.int32)
    config = driver.resolve_config(model.config, model.generation_config, generation_config, options)
    if (
        config.stop_strings
        or config.guidance_scale != 1.0
        or config.prompt_lookup_num_tokens
        or config.max_time is not None
    ):
        raise InputError(
            "stop_strings, guidance_scale, prompt_lookup_num_tokens and max_time cannot be exported; leave them out, and cut "
            "texts at stop strings in the client"
        )
    (call,) = driver.prepare(model, ids, ids, config)
    loop = call.plan.for_loop()
    input_values = _source_values if call.plan.sourced else _prompt_values
    constants = {name: value for name, value in call.values.items() if name != "keys"}
    rows, texts, new_tokens = len(call.prompt.filler), batch_size * call.plan.returned, int(call.values["new_tokens"])

    def serve(input_ids: tf.Tensor, attention_mask: tf.Tensor, keys: tf.Tensor | None = None) -> dict[str, tf.Tensor]:
        values = tf.nest.map_structure(tf.constant, constants)
        values |= input_values(call, input_ids, tf.cast(attention_mask != 0, tf.int32))
        if keys is not None:
            values["keys"] = tf.pad(keys, [[0, (rows - batch_size) * call.plan.samples], [0, 0]])
        searching = search.Search(ops, model, loop, values)
        state = decoding.advance(searching, decoding.start(searching), values["new_tokens"])
        out = decoding.result(search.Search(ops, model, call.plan, values), state)
        prompts = tf.constant(call.prompt.original, tf.int32) if call.plan.sourced else input_ids
        prompts = tf.repeat(prompts, call.plan.returned, axis=0)
        return {"sequences": tf.concat([prompts, out["ids"][:texts, :new_tokens]], 1)}

    signature = [tf.TensorSpec(ids.shape, tf.int32, name=name) for name in ("input_ids", "attention_mask")]
    if config.do_sample:
        signature.append(tf.TensorSpec((batch_size * call.plan.samples, 2), tf.uint32, name="keys"))
    return serve, signature


def _prompt_values(call: driver.Call, input_ids: tf.Tensor, mask: tf.Tensor) -> dict[str, Any]:
    """Return those values of a plan that depend on the prompts."""
    rows, columns = call.prompt.input_ids.shape
    pads = [[0, rows - input_ids.shape[0]], [columns - input_ids.shape[1], 0]]
    filler = np.zeros((rows, columns), np.int32)  # one visible token in each row that fills the bucket
    filler[input_ids.shape[0] :, -1] = 1
    padded, mask = tf.pad(input_ids, pads), tf.pad(mask, pads) + filler
    token_counts = tf.cumsum(mask, axis=1)
    return {
        "input_ids": padded,
        "known_ids": tf.where(mask != 0, padded, -1),
        "attention_mask": mask,
        "position_ids": tf.where(mask != 0, token_counts - 1, 0),
        "next_position": token_counts[:, -1],
    }


def _source_values(call: driver.Call, input_ids: tf.Tensor, mask: tf.Tensor) -> dict[str, Any]:
    """Return those values of a plan that depend on the sources."""
    rows, columns = call.values["source_ids"].shape
    pads = [[0, rows - input_ids.shape[0]], [0, columns - input_ids.shape[1]]]
    filler = np.zeros((rows, columns), np.int32)  # one visible token in each row that fills the bucket
    filler[input_ids.shape[0] :, 0] = 1
    padded, mask = tf.pad(input_ids, pads), tf.pad(mask, pads) + filler
    source_ids = tf.where(mask != 0, padded, -1)
    processors = {
        name: arrays | ({"source_ids": source_ids} if "source_ids" in arrays else {})
        for name, arrays in tf.nest.map_structure(tf.constant, call.values["processors"]).items()
    }
    return {"source_ids": padded, "source_mask": mask, "processors": processors}
