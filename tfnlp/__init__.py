"""NLP models for Keras 3 on TensorFlow, with the same names and checkpoints as jaxnlp."""

import os

from duonlp.errors import MissingExtraError
from duonlp.util.frameworks import without_native_notes

os.environ.setdefault("KERAS_BACKEND", "tensorflow")  # Keras reads it on first import
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "1")  # hides TensorFlow's start-up messages; 0 shows them
try:
    with without_native_notes():
        import keras
        import tensorflow

        if tensorflow.test.is_built_with_cuda() and not os.path.exists("/dev/nvidiactl"):
            tensorflow.config.list_physical_devices()  # logs here that there is no GPU, instead of later
except ImportError as error:
    raise MissingExtraError(f"tfnlp needs Keras and TensorFlow ({error}); pip install 'duonlp[tf]'") from error
if keras.config.backend() != "tensorflow":
    raise MissingExtraError(
        f"tfnlp needs the TensorFlow backend of Keras, but the backend is {keras.config.backend()!r}; set the "
        "environment variable KERAS_BACKEND=tensorflow before keras is first imported"
    )

from tfnlp.auto import (
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
from tfnlp.distillation import Distiller, distill, init_student
from tfnlp.export import export_model
from tfnlp.inference import compiled
from tfnlp.pipelines import pipeline
from tfnlp.prediction import cached_teacher_logits, predict
from tfnlp.pretrained import parameter_tree
from tfnlp.pruning import prune, shrink
from tfnlp.quantization import dequantize, prepare_qat, quantize

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
    "Distiller",
    "cached_teacher_logits",
    "compiled",
    "dequantize",
    "distill",
    "export_model",
    "init_student",
    "parameter_tree",
    "pipeline",
    "predict",
    "prepare_qat",
    "prune",
    "quantize",
    "shrink",
]
