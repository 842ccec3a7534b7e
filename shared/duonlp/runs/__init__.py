"""Runs described as data: pretraining from raw text, and fine-tuning and distillation of a classifier."""

from duonlp.runs.distillation import DistillSettings, distill
from duonlp.runs.finetuning import FinetuneSettings, finetune
from duonlp.runs.labelled import LabelledData, LabelledRunSettings
from duonlp.runs.preparation import Prepared, load_tokenizer, open_prepared, prepare
from duonlp.runs.pretraining import RunConfig, load_run

__all__ = [
    "DistillSettings",
    "FinetuneSettings",
    "LabelledData",
    "LabelledRunSettings",
    "Prepared",
    "RunConfig",
    "distill",
    "finetune",
    "load_run",
    "load_tokenizer",
    "open_prepared",
    "prepare",
]
