"""``pipeline("question-answering", "some/checkpoint")``: a task of duonlp.tasks run by a Keras model."""

from duonlp.pipelines.loader import load_pipeline
from duonlp.pipelines.pipeline import Pipeline
from tfnlp.generation import stream
from tfnlp.heads import HEADS
from tfnlp.inference import compiled


def pipeline(task: str, model=None, *, tokenizer=None, **options) -> Pipeline:
    """A callable that takes one input, a list of them or an iterator, and gives what Transformers' pipelines give.

    Args:
        task: feature-extraction, sentence-embedding, text-classification, token-classification, fill-mask,
            question-answering, text-generation, summarization, translation or text2text-generation.
        model: a folder, a Hub id, or a model of this package with the task's head.
        tokenizer: of Transformers, a fast one but for translation and its kin; the checkpoint's own when None.
        options: see duonlp.pipelines.load_pipeline, and the task's options.

    Raises:
        InputError: an unknown task or option, no model, or a model whose head is another task's.
        CheckpointError: the checkpoint cannot be found or read.
    """
    return load_pipeline(HEADS, _forward, task, model, tokenizer=tokenizer, stream=stream, **options)


def _forward(model):
    run = compiled(model)
    return lambda batch: run(**batch)
