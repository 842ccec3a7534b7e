"""Summarization of documents of any length."""

import warnings
from collections.abc import Sequence

from duonlp.tasks.base import Example
from duonlp.tasks.long_documents import LongDocumentOptions, LongDocumentTask


class SummarizationTask(LongDocumentTask[LongDocumentOptions]):
    """Document -> [{"summary_text"}], like SummarizationPipeline of Transformers 4.57; see Text2TextGenerationTask.

    With ``long_documents="chunk"``, a document that is too long is split between sentences, each part is summarized, and the
    joined summaries are summarized in turn until they fit the model (Wu et al. 2021, "Recursively Summarizing Books with
    Human Feedback", https://arxiv.org/abs/2109.10862, with one model for all levels). If a round does not shorten the text,
    a warning is issued and the joined summaries are the result.
    """

    name = "summarization"
    result_name = "summary"
    recursive = True

    def warn_about_lengths(self, examples: Sequence[Example], options: LongDocumentOptions) -> None:
        config = options.resolved
        if config.max_new_tokens is not None or config.max_length is None:
            return
        if config.max_length < config.min_length:
            warnings.warn(
                f"min_length={config.min_length} exceeds max_length={config.max_length}, which takes precedence; lower it",
                stacklevel=5,
            )
        short = next((example for example in examples if example.length < config.max_length), None)
        if short is not None:
            warnings.warn(
                f"max_length is {config.max_length}, but input {short.state.number} has only {short.length} tokens, so its "
                f"summary may be longer; consider max_length={max(short.length // 2, 2)}",
                stacklevel=5,
            )
