"""Runs described as data: pretraining from raw text, fine-tuning of classifiers and readers, distillation of classifiers."""

from duonlp.runs.cross_validation import cross_validate
from duonlp.runs.distillation import DistillSettings, distill
from duonlp.runs.finetuning import FinetuneSettings, finetune
from duonlp.runs.labelled import LabelledData, LabelledRunSettings
from duonlp.runs.preparation import Prepared, load_tokenizer, open_prepared, prepare
from duonlp.runs.pretraining import RunConfig, load_run
from duonlp.runs.question_answering import QuestionAnsweringSettings, QuestionData
from duonlp.runs.settings import RunData, RunSettings

__all__ = [
    "DistillSettings",
    "FinetuneSettings",
    "LabelledData",
    "LabelledRunSettings",
    "Prepared",
    "QuestionAnsweringSettings",
    "QuestionData",
    "RunConfig",
    "RunData",
    "RunSettings",
    "cross_validate",
    "distill",
    "finetune",
    "load_run",
    "load_tokenizer",
    "open_prepared",
    "prepare",
]
