"""Predict logits for many texts in order, and cache those of a teacher on disk."""

from functools import partial
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax
import numpy as np
from flax import nnx

from duonlp.distillation.teacher_logits import TeacherLogits, collect_in_text_order, load_or_compute_logits
from duonlp.inputs import check_inputs, model_inputs
from duonlp.typing import Batch
from jaxnlp.pretrained import merge, parameter_tree, split

if TYPE_CHECKING:
    from jaxnlp.model import Model


def predict(model: "Model", batches: Any, *, as_teacher: bool = False, dropout_seed: int | None = None) -> np.ndarray:
    """Return the logits of each text, float32 [n, C], in the order of the texts.

    Args:
        model: Model whose head has one row of ``logits`` per text. Models of the same structure share their
            compiled programs.
        batches: LabelledBatches of duonlp.data, or any batches of input_ids, attention_mask, ... with
            ``epoch(n)`` and ``order(n)``. Labels are not used.
        as_teacher: Whether to use ``teacher_input_ids``, ..., where the batches have them.
        dropout_seed: Seed of dropout, a non-negative integer, for a sample of the predictions of a model with dropout (Gal and
            Ghahramani 2016, https://arxiv.org/abs/1506.02142); None for the predictions themselves.

    Raises:
        InputError: The model does not accept the inputs, or the batches do not say which text each row is.
    """
    graphdef, params = split(model)
    key, numbers = None if dropout_seed is None else jax.random.key(dropout_seed), count()

    def forward(batch: Batch) -> np.ndarray:
        inputs = model_inputs(model.config, batch, as_teacher=as_teacher)
        check_inputs(model.config, model.head, inputs)
        batch_key = None if key is None else jax.random.fold_in(key, next(numbers))
        return jax.device_get(_logits(graphdef, params, inputs, batch_key))

    return collect_in_text_order(batches, forward)


@partial(jax.jit, static_argnums=0)
def _logits(graphdef, params, inputs, key):
    return merge(graphdef, params)(**inputs, rngs=None if key is None else nnx.Rngs(dropout=key))["logits"]


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
