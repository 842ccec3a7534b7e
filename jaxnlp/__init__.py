"""NLP models for Flax NNX on JAX. The same names as tfnlp, over the same checkpoints."""

from shared.errors import MissingExtraError

try:
    import flax  # noqa: F401
    import jax  # noqa: F401
except ImportError as error:
    raise MissingExtraError(f"jaxnlp needs JAX and Flax ({error}); pip install 'duonlp[jax]'") from error

from jaxnlp.auto import (
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    AutoModelForMultipleChoice,
    AutoModelForNextSentencePrediction,
    AutoModelForPreTraining,
    AutoModelForQuestionAnswering,
    AutoModelForSeq2SeqLM,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
)  # fmt: skip
from jaxnlp.inference import compiled
from jaxnlp.pipelines import pipeline
from jaxnlp.pretrained import functional, merge, parameter_tree, split, update

__all__ = [
    "AutoModel",
    "AutoModelForCausalLM",
    "AutoModelForMaskedLM",
    "AutoModelForMultipleChoice",
    "AutoModelForNextSentencePrediction",
    "AutoModelForPreTraining",
    "AutoModelForQuestionAnswering",
    "AutoModelForSeq2SeqLM",
    "AutoModelForSequenceClassification",
    "AutoModelForTokenClassification",
    "compiled",
    "functional",
    "merge",
    "parameter_tree",
    "pipeline",
    "split",
    "update",
]
