"""NLP models for Keras 3 on TensorFlow. The same names as jaxnlp, over the same checkpoints."""

import os

from duonlp.errors import MissingExtraError
from duonlp.util.frameworks import without_native_notes

os.environ.setdefault("KERAS_BACKEND", "tensorflow")  # Keras reads it once, when it is first imported
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "1")  # no notes of its start; 0 shows them
try:
    with without_native_notes():
        import keras
        import tensorflow

        if tensorflow.test.is_built_with_cuda() and not os.path.exists("/dev/nvidiactl"):
            tensorflow.config.list_physical_devices()  # says here rather than later that there is no GPU
except ImportError as error:
    raise MissingExtraError(f"tfnlp needs Keras and TensorFlow ({error}); pip install 'duonlp[tf]'") from error
if keras.config.backend() != "tensorflow":
    raise MissingExtraError(
        f"tfnlp needs Keras on TensorFlow, and Keras runs on {keras.config.backend()!r} here; set the environment "
        "variable KERAS_BACKEND=tensorflow before keras is first imported"
    )

from tfnlp.auto import (
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
from tfnlp.distillation import Distiller, distill, init_student
from tfnlp.inference import compiled
from tfnlp.pipelines import pipeline
from tfnlp.prediction import cached_teacher_logits, predict
from tfnlp.pretrained import parameter_tree

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
    "Distiller",
    "cached_teacher_logits",
    "compiled",
    "distill",
    "init_student",
    "parameter_tree",
    "pipeline",
    "predict",
]
