"""A model's logits of many texts, in their order, and those of a teacher kept on disk."""

from functools import partial

import jax
import numpy as np

from duonlp.distillation.teacher_logits import TeacherLogits, collect_in_text_order, load_or_compute_logits
from duonlp.inputs import check_inputs, model_inputs
from jaxnlp.pretrained import merge, parameter_tree, split


def predict(model, batches, *, as_teacher: bool = False) -> np.ndarray:
    """The logits of each text: float32 [n, C], in the order of the texts.

    Args:
        model: of a head with one row of ``logits`` a text. Models of one structure share their compiled programs.
        batches: of input_ids, attention_mask, ..., with ``epoch(n)`` and ``order(n)``: LabelledBatches of
            duonlp.data.labelled.batches. Labels are not read.
        as_teacher: reads ``teacher_input_ids``, ..., where there are such.

    Raises:
        InputError: the model does not take the inputs, or the batches do not tell which text each row is.
    """
    graphdef, params = split(model)

    def forward(batch):
        inputs = model_inputs(model.config, batch, as_teacher=as_teacher)
        check_inputs(model.config, model.head, inputs)
        return jax.device_get(_logits(graphdef, params, inputs))

    return collect_in_text_order(batches, forward)


@partial(jax.jit, static_argnums=0)
def _logits(graphdef, params, inputs):
    return merge(graphdef, params)(**inputs)["logits"]


def cached_teacher_logits(teacher, batches, folder) -> TeacherLogits:
    """The batches, with the teacher's logits as ``teacher_logits``: computed once, and kept in a folder.

    They are found again by a hash of the teacher's values and of the texts' ids: nothing is computed the next time, in
    either package.

    Args:
        teacher: a model of a head with one row of logits a text.
        batches: as :func:`predict` takes them; with ``teacher_...`` inputs where the teacher has another tokenizer.
        folder: of the files.

    Raises:
        InputError: as :func:`predict`.
    """
    return load_or_compute_logits(batches, folder, teacher, parameter_tree(teacher), partial(predict, as_teacher=True))
