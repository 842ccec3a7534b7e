"""Tasks by name: text to arrays, arrays to results, and no model in between."""

from duonlp.errors import InputError
from duonlp.tasks.base import Example, Options, Task
from duonlp.tasks.feature_extraction import FeatureExtractionTask
from duonlp.tasks.fill_mask import FillMaskTask
from duonlp.tasks.question_answering import QuestionAnsweringTask
from duonlp.tasks.sentence_embedding import SentenceEmbeddingTask
from duonlp.tasks.summarization import SummarizationTask
from duonlp.tasks.text2text_generation import Text2TextGenerationTask
from duonlp.tasks.text_classification import TextClassificationTask
from duonlp.tasks.text_generation import TextGenerationTask
from duonlp.tasks.token_classification import TokenClassificationTask
from duonlp.tasks.translation import PAIR, TranslationTask

TASKS: dict[str, type[Task]] = {
    task.name: task
    for task in (
        FeatureExtractionTask,
        SentenceEmbeddingTask,
        TextClassificationTask,
        TokenClassificationTask,
        FillMaskTask,
        QuestionAnsweringTask,
        TextGenerationTask,
        Text2TextGenerationTask,
        SummarizationTask,
        TranslationTask,
    )
}

ALIASES = {
    "sentiment-analysis": "text-classification",
    "ner": "token-classification",
    "sentence-similarity": "sentence-embedding",
}
"""Other names of tasks."""


def get_task(name: str) -> type[Task]:
    """The class of a task, by its name or an alias of it; "translation_en_to_fr" is translation.

    Raises:
        InputError: for a name that is neither.
    """
    task = TASKS.get(ALIASES.get(name, name)) if isinstance(name, str) else None
    if task is None and isinstance(name, str) and PAIR.fullmatch(name):
        task = TranslationTask
    if task is None:
        raise InputError(f"task {name!r} is not one of {', '.join([*TASKS, *ALIASES])}")
    return task


def make_task(name: str, tokenizer, config, folder=None, generation_config=None) -> Task:
    """A task by its name; see :class:`Task` and, for those that write text, duonlp.tasks.generation.GenerationTask.

    Raises:
        InputError: for an unknown name, or a tokenizer or a model that the task cannot work with.
    """
    made = get_task(name)
    if made.generates:
        return made(tokenizer, config, folder, generation_config, ALIASES.get(name, name))
    return made(tokenizer, config, folder)


__all__ = ["ALIASES", "TASKS", "Example", "Options", "Task", "get_task", "make_task"]
