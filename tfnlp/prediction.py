"""Predict logits for many texts in order, and cache those of a teacher on disk."""

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from duonlp.distillation.teacher_logits import TeacherLogits, collect_in_text_order, load_or_compute_logits
from duonlp.inputs import model_inputs
from duonlp.typing import Batch
from tfnlp.inference import get_compiled
from tfnlp.pretrained import parameter_tree

if TYPE_CHECKING:
    from tfnlp.model import Model


def predict(model: "Model", batches: Any, *, as_teacher: bool = False) -> np.ndarray:
    """Return the logits of each text, float32 [n, C], in the order of the texts.

    Args:
        model: Model whose head has one row of ``logits`` per text.
        batches: LabelledBatches of duonlp.data, or any batches of input_ids, attention_mask, ... with
            ``epoch(n)`` and ``order(n)``. Labels are not used.
        as_teacher: Whether to use ``teacher_input_ids``, ..., where the batches have them.

    Raises:
        InputError: The model does not accept the inputs, or the batches do not say which text each row is.
    """
    run = get_compiled(model)

    def forward(batch: Batch) -> np.ndarray:
        return run(**model_inputs(model.config, batch, as_teacher=as_teacher))["logits"]

    return collect_in_text_order(batches, forward)


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
