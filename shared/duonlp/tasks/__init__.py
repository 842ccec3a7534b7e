"""Registry of tasks, which convert inputs to arrays and model outputs to results, without a model."""

import os
from typing import Any

from duonlp.config import TransformerConfig
from duonlp.errors import InputError
from duonlp.generation import GenerationConfig
from duonlp.tasks.base import Example, Options, Task
from duonlp.tasks.feature_extraction import FeatureExtractionTask
from duonlp.tasks.fill_mask import FillMaskTask
from duonlp.tasks.generation import GenerationTask
from duonlp.tasks.image_classification import ImageClassificationTask
from duonlp.tasks.question_answering import QuestionAnsweringTask
from duonlp.tasks.reader_config import ReaderConfig, read_reader_config, write_reader_config
from duonlp.tasks.sentence_embedding import SentenceEmbeddingTask
from duonlp.tasks.summarization import SummarizationTask
from duonlp.tasks.text2text_generation import Text2TextGenerationTask
from duonlp.tasks.text_classification import TextClassificationTask
from duonlp.tasks.text_generation import TextGenerationTask
from duonlp.tasks.token_classification import TokenClassificationTask
from duonlp.tasks.translation import PAIR, TranslationTask
from duonlp.tasks.zero_shot_classification import ZeroShotClassificationTask

TASKS: dict[str, type[Task[Any]]] = {
    task.name: task
    for task in (
        FeatureExtractionTask,
        SentenceEmbeddingTask,
        TextClassificationTask,
        ZeroShotClassificationTask,
        TokenClassificationTask,
        FillMaskTask,
        QuestionAnsweringTask,
        TextGenerationTask,
        Text2TextGenerationTask,
        SummarizationTask,
        TranslationTask,
        ImageClassificationTask,
    )
}

ALIASES = {
    "sentiment-analysis": "text-classification",
    "ner": "token-classification",
    "sentence-similarity": "sentence-embedding",
}
"""Alternative names of tasks."""


def get_task(name: str) -> type[Task[Any]]:
    """Return the class of a task by its name or alias; "translation_en_to_fr" is a translation.

    Raises:
        InputError: the name is unknown.
    """
    task = TASKS.get(ALIASES.get(name, name)) if isinstance(name, str) else None
    if task is None and isinstance(name, str) and PAIR.fullmatch(name):
        task = TranslationTask
    if task is None:
        raise InputError(f"unknown task {name!r}; expected one of {', '.join([*TASKS, *ALIASES])}")
    return task


def make_task(
    name: str,
    processor: Any,
    config: TransformerConfig,
    folder: str | os.PathLike[str] | None = None,
    generation_config: GenerationConfig | None = None,
) -> Task[Any]:
    """Create a task by its name or alias.

    Args:
        name: Name or alias.
        processor: Tokenizer or image processor; see :class:`Task`.
        config: See :class:`Task`.
        folder: See :class:`Task`.
        generation_config: Default generation settings of the model; only read by tasks that generate text.

    Raises:
        InputError: the name is unknown, or the task does not support the processor or the model.
    """
    task_class = get_task(name)
    if issubclass(task_class, GenerationTask):
        return task_class(processor, config, folder, generation_config, ALIASES.get(name, name))
    return task_class(processor, config, folder)


__all__ = [
    "ALIASES",
    "TASKS",
    "Example",
    "Options",
    "ReaderConfig",
    "Task",
    "get_task",
    "make_task",
    "read_reader_config",
    "write_reader_config",
]
