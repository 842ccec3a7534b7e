"""Load a checkpoint to train it, with a new head if it lacks the one it needs, and prepare it for its quantization."""

import warnings
from itertools import islice
from typing import Any

from duonlp.errors import NewHeadWarning
from duonlp.runs.settings import RunSettings
from duonlp.typing import Engine, EpochBatches

CALIBRATED = 16
"""Number of training batches that scales of static activations are calibrated on."""


def load_for_training(
    package: Engine, auto_class: str, name: str, dtype: str, seed: int, **overrides: Any
) -> tuple[Any, bool]:
    """Load a checkpoint with the head of an auto class.

    Args:
        package: tfnlp or jaxnlp.
        auto_class: Name of the auto class, such as "AutoModelForQuestionAnswering".
        name: Folder in Hugging Face layout, or a Hub id.
        dtype: Compute dtype.
        seed: Seed for a new head.
        overrides: Keys of config.json to override, such as num_labels.

    Returns:
        (model, whether its head is new rather than the checkpoint's).

    Raises:
        CheckpointError: The checkpoint cannot be read.
    """
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        model = getattr(package, auto_class).from_pretrained(
            name, dtype=dtype, seed=seed, ignore_mismatched_sizes=True, **overrides
        )
    is_new_head = False
    for warning in caught:
        if issubclass(warning.category, NewHeadWarning):  # expected in fine-tuning, so not worth a warning
            is_new_head = True
        else:
            warnings.warn_explicit(warning.message, warning.category, warning.filename, warning.lineno)
    return model, is_new_head


def prepare_for_quantization(package: Engine, model: Any, settings: RunSettings, batches: EpochBatches) -> Any:
    """Return a model for the training of a run: the given one, or that of ``quantization_aware``.

    Args:
        package: tfnlp or jaxnlp.
        model: The model to train.
        settings: Settings of the run.
        batches: Training batches, the first of which calibrate static activations.
    """
    if not settings.quantization_aware:
        return model
    return package.prepare_qat(model, settings.quantization_aware, list(islice(batches.epoch(0), CALIBRATED)))
