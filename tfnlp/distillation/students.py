"""Create a student from some of its teacher's layers."""

from collections.abc import Sequence
from typing import Any

from duonlp.distillation.students import student_config, student_plan
from duonlp.errors import InputError
from tfnlp.pretrained import merged_values


def init_student(
    teacher: Any,
    *,
    num_layers: int | None = None,
    layers: Sequence[int] | None = None,
    decoder_layers: int | Sequence[int] | None = None,
) -> Any:
    """Create a student of the teacher's class from some of its layers, its embeddings and its head.

    The values are copied; the teacher is not changed. LoRA weights are merged. Under a tf.distribute strategy's ``scope()`` the
    student's variables are created for that strategy.

    Args:
        teacher: A tfnlp model.
        num_layers: Number of evenly spaced layers to copy, including the first and the last (DistilBERT's 6 of 12: 0, 2,
            4, 7, 9, 11); in an encoder-decoder, of the encoder.
        layers: Alternatively, the indices of the layers; negative ones count from the end.
        decoder_layers: Number or indices of decoder layers of an encoder-decoder; None for all.

    Returns:
        The student.

    Raises:
        InputError: The layers are invalid (see duonlp.distillation.student_config), or the teacher is quantized.
    """
    if any(layer.quantization_mode is not None for layer in teacher._flatten_layers()):
        raise InputError("the teacher is quantized; create the student before quantizing it")
    description = student_config(
        teacher.config, teacher.head, num_layers=num_layers, layers=layers, decoder_layers=decoder_layers
    )
    plan = student_plan(description, teacher.head, lambda path: merged_values(teacher, path))
    student = type(teacher)._from_plan(description.config, plan, teacher.compute_dtype, teacher.variable_dtype)
    student.generation_config = teacher.generation_config
    return student
