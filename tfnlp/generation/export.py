"""Text generation inside a SavedModel, for a server without Python."""

import keras
import numpy as np
import tensorflow as tf

from shared.errors import InputError
from shared.generation import driver, search
from tfnlp import ops


def export_generate(
    model, filepath, *, batch_size: int = 1, prompt_length: int, generation_config=None, **options
) -> None:  # fmt: skip
    """Write a SavedModel with an endpoint ``generate``: the same compiled loop as ``model.generate``.

    The endpoint takes ``input_ids`` and ``attention_mask``, int32 [batch_size, prompt_length], padded on the left; and with
    do_sample ``keys``, uint32 [batch_size * num_return_sequences, 2], two random words a text (or
    shared.generation.threefry.row_keys, for the very texts that ``generate`` gives). It gives ``sequences``, int32
    [batch_size * num_return_sequences, prompt_length + new tokens], the pad token after the end of a text.

    Args:
        filepath: a new folder.
        options: fields of GenerationConfig, such as max_new_tokens and num_beams.

    Raises:
        InputError: as ``generate``; stop_strings and guidance_scale, which need what a signature cannot hold.
    """
    ids = np.ones((batch_size, prompt_length), np.int32)
    config = driver.resolve_config(model.config, model.generation_config, generation_config, options)
    if config.stop_strings or config.guidance_scale != 1.0 or config.prompt_lookup_num_tokens:
        raise InputError(
            "stop_strings, guidance_scale and prompt_lookup_num_tokens cannot be exported; leave them out, and cut the text "
            "at a stop string yourself"
        )
    (call,) = driver.prepare(model, ids, ids, config)
    loop = call.plan.for_loop()
    fixed = {name: value for name, value in call.values.items() if name not in ("input_ids", "keys")}
    rows, columns = call.prompt.input_ids.shape
    pads = [[0, rows - batch_size], [columns - prompt_length, 0]]
    filler = np.zeros((rows, columns), np.int32)
    filler[batch_size:, -1] = 1
    texts, new_tokens = batch_size * call.plan.returned, int(call.values["new_tokens"])

    def serve(input_ids, attention_mask, keys=None):
        mask = tf.cast(attention_mask != 0, tf.int32)
        mask = tf.pad(mask, pads) + filler
        padded = tf.pad(input_ids, pads)
        counted = tf.cumsum(mask, axis=1)
        values = tf.nest.map_structure(tf.constant, fixed) | {
            "input_ids": padded,
            "known_ids": tf.where(mask != 0, padded, -1),
            "attention_mask": mask,
            "position_ids": tf.where(mask != 0, counted - 1, 0),
            "next_position": counted[:, -1],
        }
        if keys is not None:
            values["keys"] = tf.pad(keys, [[0, (rows - batch_size) * call.plan.samples], [0, 0]])
        searching = search.Search(ops, model, loop, values)
        state = search.advance(searching, search.start(searching), values["new_tokens"])
        out = search.result(search.Search(ops, model, call.plan, values), state)
        prompts = tf.repeat(input_ids, call.plan.returned, axis=0)
        return {"sequences": tf.concat([prompts, out["ids"][:texts, :new_tokens]], 1)}

    signature = [tf.TensorSpec(ids.shape, tf.int32, name=name) for name in ("input_ids", "attention_mask")]
    if config.do_sample:
        signature.append(tf.TensorSpec((batch_size * call.plan.samples, 2), tf.uint32, name="keys"))
    archive = keras.export.ExportArchive()
    archive.track(model)
    archive.add_endpoint("generate", tf.function(serve, signature, jit_compile=True, autograph=False))
    archive.write_out(filepath, verbose=False)
