"""NLP models for Flax NNX on JAX, with the same names and checkpoints as tfnlp."""

from typing import TYPE_CHECKING, Any

from duonlp.errors import MissingExtraError

try:
    import flax  # noqa: F401
    import jax  # noqa: F401
except ImportError as error:
    raise MissingExtraError(f"jaxnlp needs JAX and Flax ({error}); pip install 'duonlp[jax]'") from error

from jaxnlp.auto import (
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForImageClassification,
    AutoModelForMaskedLM,
    AutoModelForMultipleChoice,
    AutoModelForNextSentencePrediction,
    AutoModelForPreTraining,
    AutoModelForQuestionAnswering,
    AutoModelForSeq2SeqLM,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
)  # fmt: skip
from jaxnlp.distillation import init_student
from jaxnlp.export import export_model
from jaxnlp.inference import compiled
from jaxnlp.pipelines import pipeline
from jaxnlp.prediction import cached_teacher_logits, predict
from jaxnlp.pretrained import functional, merge, parameter_tree, split, update
from jaxnlp.pruning import prune, shrink
from jaxnlp.quantization import dequantize, prepare_qat, quantize

if TYPE_CHECKING:
    from jaxnlp.distillation import distill

__all__ = [
    "AutoModel",
    "AutoModelForCausalLM",
    "AutoModelForImageClassification",
    "AutoModelForMaskedLM",
    "AutoModelForMultipleChoice",
    "AutoModelForNextSentencePrediction",
    "AutoModelForPreTraining",
    "AutoModelForQuestionAnswering",
    "AutoModelForSeq2SeqLM",
    "AutoModelForSequenceClassification",
    "AutoModelForTokenClassification",
    "cached_teacher_logits",
    "compiled",
    "dequantize",
    "distill",
    "export_model",
    "functional",
    "init_student",
    "merge",
    "parameter_tree",
    "pipeline",
    "predict",
    "prepare_qat",
    "prune",
    "quantize",
    "shrink",
    "split",
    "update",
]


def __getattr__(name: str) -> Any:
    """Import ``distill`` on first use: training needs Orbax, which running a model does not."""
    if name == "distill":
        from jaxnlp.distillation import distill

        return distill
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
