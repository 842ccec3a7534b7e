"""A student that starts as some of its teacher's layers."""

import jax.numpy as jnp
import numpy as np

from duonlp.distillation.students import student_config, student_plan
from jaxnlp.pretrained import parameter_tree


def init_student(teacher, *, num_layers=None, layers=None, decoder_layers=None):
    """A model of the teacher's class with some of its layers, its embeddings and its head: a start for distillation.

    The values are copies; the teacher stays as it is.

    Args:
        teacher: a model of this package.
        num_layers: how many layers, evenly spaced, the first and the last among them (DistilBERT's 6 of 12: 0, 2, 4, 7, 9,
            11); of an encoder-decoder, of the encoder.
        layers: or the layers themselves, counted from 0 or, negative, from the end.
        decoder_layers: of an encoder-decoder's decoder, a number or a sequence of them; None for all.

    Raises:
        InputError: there are no such layers (see duonlp.distillation.student_config).
    """
    made = student_config(
        teacher.config, teacher.head, num_layers=num_layers, layers=layers, decoder_layers=decoder_layers
    )
    values = parameter_tree(teacher)
    plan = student_plan(made, teacher.head, lambda path: np.asarray(values[path]))
    dtypes = (jnp.dtype(dtype).name for dtype in (teacher.dtype, teacher.param_dtype))
    student = type(teacher)._from_plan(made.config, plan, *dtypes)
    student.generation_config = teacher.generation_config
    return student
