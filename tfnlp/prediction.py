"""Predict logits for many texts in order, and cache those of a teacher on disk."""

from collections.abc import Callable, Generator
from contextlib import contextmanager, nullcontext
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import tensorflow as tf

from duonlp.distillation.teacher_logits import TeacherLogits, collect_in_text_order, load_or_compute_logits
from duonlp.inputs import check_inputs, model_inputs
from duonlp.typing import Array, Batch
from tfnlp.inference import cached, get_compiled
from tfnlp.pretrained import parameter_tree

if TYPE_CHECKING:
    from tfnlp.model import Model


def predict(model: "Model", batches: Any, *, as_teacher: bool = False, dropout_seed: int | None = None) -> np.ndarray:
    """Return the logits of each text, float32 [n, C], in the order of the texts.

    Args:
        model: Model whose head has one row of ``logits`` per text.
        batches: LabelledBatches of duonlp.data, or any batches of input_ids, attention_mask, ... with
            ``epoch(n)`` and ``order(n)``. Labels are not used.
        as_teacher: Whether to use ``teacher_input_ids``, ..., where the batches have them.
        dropout_seed: Seed of dropout, a non-negative integer, for a sample of the predictions of a model with dropout (Gal and
            Ghahramani 2016, https://arxiv.org/abs/1506.02142); None for the predictions themselves.

    Raises:
        InputError: The model does not accept the inputs, or the batches do not say which text each row is.
    """
    run = (
        get_compiled(model)
        if dropout_seed is None
        else cached(model, "_compiled_dropout", lambda: _with_dropout(model))
    )

    def forward(batch: Batch) -> np.ndarray:
        return run(**model_inputs(model.config, batch, as_teacher=as_teacher))["logits"]

    with nullcontext() if dropout_seed is None else _seeded_dropout(model, dropout_seed):
        return collect_in_text_order(batches, forward)


def _with_dropout(model: "Model") -> Callable[..., dict[str, Any]]:
    """Return a function with the model's inputs and logits, with dropout, that runs as a TensorFlow graph."""
    graph = tf.function(lambda inputs: {"logits": model(inputs, training=True)["logits"]}, autograph=False)

    def run(**inputs: Array) -> dict[str, Any]:
        check_inputs(model.config, model.head, inputs)
        return graph({name: tf.convert_to_tensor(np.asarray(value)) for name, value in inputs.items()})

    return run


@contextmanager
def _seeded_dropout(model: "Model", seed: int) -> Generator[None]:
    """Make dropout depend on a seed alone, and restore its state in the end."""
    layers = model._flatten_layers()
    states = [layer.seed_generator.state for layer in layers if getattr(layer, "seed_generator", None) is not None]
    before = [state.numpy() for state in states]
    for state, start in zip(states, np.random.SeedSequence(seed).generate_state(max(len(states), 1))):
        state.assign(np.array([start, 0], state.dtype))
    try:
        yield
    finally:
        for state, value in zip(states, before):
            state.assign(value)


def cached_teacher_logits(teacher: "Model", batches: Any, folder: str | Path) -> TeacherLogits:
    """Return the batches with the teacher's logits added as ``teacher_logits``, computed once and cached in a folder.

    The cache key is a hash of the teacher's parameters and of the token ids of the texts. The cache is shared
    with the other engine.

    Args:
        teacher: Model whose head has one row of logits per text.
        batches: Batches as :func:`predict` takes them, with ``teacher_...`` inputs if the teacher has its own
            tokenizer.
        folder: Folder of the cached files.

    Raises:
        InputError: See :func:`predict`.
    """
    return load_or_compute_logits(batches, folder, teacher, parameter_tree(teacher), partial(predict, as_teacher=True))
