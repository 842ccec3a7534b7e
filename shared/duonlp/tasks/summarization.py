"""Summarization: a document to a few sentences, whatever its length."""

import warnings

from duonlp.tasks.long_documents import LongDocumentTask


class SummarizationTask(LongDocumentTask):
    """Document -> [{"summary_text"}], as SummarizationPipeline of Transformers 4.57; see Text2TextGenerationTask.

    With ``long_documents="chunk"`` a document that is too long is cut between sentences, every part is summarized, and
    their summaries together are summarized in turn until they fit the model (Wu et al. 2021, "Recursively Summarizing Books
    with Human Feedback", https://arxiv.org/abs/2109.10862, with one model for all levels). Rounds that do not make it shorter
    end with a warning, and the summaries so far are the result.
    """

    name = "summarization"
    result_name = "summary"
    recursive = True

    def check_lengths(self, examples, options):
        config = options.resolved
        if config.max_new_tokens is not None or config.max_length is None:
            return
        if config.max_length < config.min_length:
            warnings.warn(
                f"min_length={config.min_length} is more than max_length={config.max_length}, which wins; lower it",
                stacklevel=5,
            )
        short = next((example for example in examples if example.length < config.max_length), None)
        if short is not None:
            warnings.warn(
                f"max_length is {config.max_length}, and input {short.state.number} has only {short.length} tokens: its "
                f"summary may be longer than itself; pass max_length={max(short.length // 2, 2)}, say",
                stacklevel=5,
            )
