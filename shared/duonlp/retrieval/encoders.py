"""Encoders of questions and passages over the "sentence-embedding" pipeline of either engine."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from duonlp.architectures.dpr import BASE_CLASSES
from duonlp.errors import InputError
from duonlp.pipelines.identity import weights_hash
from duonlp.pipelines.pipeline import Pipeline
from duonlp.tasks.sentence_config import l2_normalize
from duonlp.tasks.sentence_embedding import SentenceEmbeddingTask

QUERY_PROMPTS = ("query", "question")
DOCUMENT_PROMPTS = ("document", "passage", "corpus")
"""Names of the prompts of a checkpoint that queries and documents get, the first that exists; as in sentence-transformers."""


class SentenceEncoder:
    """Encodes texts with any sentence encoder.

    A title goes before its text, after the prefix. Models trained for cosine similarity get vectors of unit length, whose inner
    product it is.

    Args:
        pipe: Pipeline "sentence-embedding" of either engine.
        query_prefix: Text before each query, such as "query: " for E5; None for the checkpoint's prompt "query", if it has one.
        document_prefix: Text before each document, such as "passage: "; None for the checkpoint's prompt "document" or "passage".
        normalize: Whether vectors are scaled to unit length; None scales them unless the model was trained for inner products.
        max_length: Number of tokens to truncate to; None for the checkpoint's limit.
        batch_size: Rows of a batch; None for the pipeline's.
        name: Name of the model; None for one that is computed from its files.

    Attributes:
        name: Name of the model and of all settings that its vectors depend on.
        size: Length of a vector.

    Raises:
        InputError: The pipeline has another task, the model was trained for a distance, or no name is given for one that was
            passed loaded or has no files.
    """

    def __init__(
        self,
        pipe: Pipeline,
        query_prefix: str | None = None,
        document_prefix: str | None = None,
        *,
        normalize: bool | None = None,
        max_length: int | None = None,
        batch_size: int | None = None,
        name: str | None = None,
    ):
        task = sentence_task(pipe, "SentenceEncoder")
        if normalize is None and task.similarity not in ("cosine", "dot"):
            raise InputError(
                f"the model was trained for {task.similarity} distances, which no inner product is; pass normalize=True for "
                "cosine similarities, or use another model"
            )
        prompts, default = task.sentence.prompts or {}, task.sentence.default_prompt
        self.pipe, self.batch_size = pipe, batch_size
        self.query_prefix = _first(prompts, QUERY_PROMPTS, default) if query_prefix is None else query_prefix
        self.document_prefix = (
            _first(prompts, DOCUMENT_PROMPTS, default) if document_prefix is None else document_prefix
        )
        self.normalize = task.similarity == "cosine" if normalize is None else normalize
        self._options: dict[str, Any] = {} if max_length is None else {"max_length": max_length}
        settings = [f"prefixes {self.query_prefix!r} and {self.document_prefix!r}"]
        settings += ["unit length"] * self.normalize + [f"{max_length} tokens"] * (max_length is not None)
        self.name, self.size = f"{name or model_name(pipe)}, {', '.join(settings)}", task.size

    def encode_queries(self, texts: Sequence[str]) -> np.ndarray:
        """Return the vectors of questions, float32 [n, size].

        Raises:
            InputError: A text is empty, or not a text.
        """
        return self._encode(texts, self.query_prefix)

    def encode_documents(self, texts: Sequence[str], titles: Sequence[str] | None = None) -> np.ndarray:
        """Return the vectors of passages, float32 [n, size].

        Args:
            texts: Passages.
            titles: Title of each, "" for none.

        Raises:
            InputError: A text is empty, or not a text, or there is another number of titles.
        """
        if titles is not None:
            texts = [f"{title} {text}" if title else text for title, text in _titled(texts, titles)]
        return self._encode(texts, self.document_prefix)

    def _encode(self, texts: Sequence[str], prefix: str) -> np.ndarray:
        vectors = self.pipe(list(texts), prompt=prefix, prompt_name=None, batch_size=self.batch_size, **self._options)
        return l2_normalize(vectors).astype(np.float32) if self.normalize else vectors


class DPREncoder:
    """Encodes questions and passages with the two towers of DPR (Karpukhin et al. 2020, https://arxiv.org/abs/2004.04906).

    A passage with a title is encoded as the pair of both, as DPR was trained.

    Args:
        question_pipe: Pipeline "sentence-embedding" of the question encoder.
        context_pipe: Pipeline "sentence-embedding" of the context encoder.
        batch_size: Rows of a batch; None for the pipelines'.
        max_length: Number of tokens that passages are truncated to; DPR's were trained with 256. None for the model's positions.
        name: Name of the pair of models; None for one that is computed from their files. A question encoder trained with RAG,
            beside which the passages' vectors stay valid, keeps the index with the name that the index knows.

    Attributes:
        name: Name of the models.
        size: Length of a vector.

    Raises:
        InputError: A pipeline has another task, the towers are swapped or their vectors differ in length, or no name is given for
            models that were passed loaded or have no files.
    """

    def __init__(
        self,
        question_pipe: Pipeline,
        context_pipe: Pipeline,
        *,
        max_length: int | None = None,
        batch_size: int | None = None,
        name: str | None = None,
    ):
        question, context = (sentence_task(pipe, "DPREncoder") for pipe in (question_pipe, context_pipe))
        if question.size != context.size:
            raise InputError(
                f"the question encoder's vectors have {question.size} values and the context encoder's {context.size}; use two "
                "encoders that were trained together"
            )
        towers = tuple(pipe.config.base_class for pipe in (context_pipe, question_pipe))
        if towers == tuple(BASE_CLASSES):
            raise InputError(
                f"question_pipe is a {towers[1]} and context_pipe a {towers[0]}; pass the question encoder first"
            )
        self.question_pipe, self.context_pipe, self.batch_size = question_pipe, context_pipe, batch_size
        self._options: dict[str, Any] = {} if max_length is None else {"max_length": max_length}
        self.name = name or f"{model_name(question_pipe)} for questions, {model_name(context_pipe)} for passages"
        self.name += f", {max_length} tokens" if max_length is not None else ""
        self.size = question.size

    def encode_queries(self, texts: Sequence[str]) -> np.ndarray:
        """Return the vectors of questions, float32 [n, size].

        Raises:
            InputError: A text is empty, or not a text.
        """
        return self.question_pipe(list(texts), batch_size=self.batch_size)

    def encode_documents(self, texts: Sequence[str], titles: Sequence[str] | None = None) -> np.ndarray:
        """Return the vectors of passages, float32 [n, size].

        Args:
            texts: Passages.
            titles: Title of each, "" for none.

        Raises:
            InputError: A text is empty, or not a text, or there is another number of titles.
        """
        inputs = list(texts)
        if titles is not None:
            inputs = [{"text": title, "text_pair": text} if title else text for title, text in _titled(texts, titles)]
        return self.context_pipe(inputs, batch_size=self.batch_size, **self._options)


def sentence_task(pipe: Pipeline, user: str) -> SentenceEmbeddingTask:
    """Return the task of a "sentence-embedding" pipeline.

    Args:
        pipe: The pipeline.
        user: Name of what needs it, for the error message.

    Raises:
        InputError: It is none.
    """
    if not isinstance(pipe, Pipeline) or not isinstance(pipe.task, SentenceEmbeddingTask):
        raise InputError(
            f'{user} got {pipe!r}; pass a pipeline of an engine, such as jaxnlp.pipeline("sentence-embedding", folder)'
        )
    return pipe.task


def model_name(pipe: Pipeline) -> str:
    """Return a name of a pipeline's model that depends on its files alone, wherever they are: family, size, and a hash.

    Raises:
        InputError: The model has no files with weights, or was passed to the pipeline loaded.
    """
    task, digest = sentence_task(pipe, "model_name"), weights_hash(pipe)
    sentence, cfg = task.sentence, pipe.config
    pooling = "own" if task.pooled else "+".join(sentence.pooling)
    details = [f"{pooling} pooling"] + [f"{sentence.max_length} tokens"] * (sentence.max_length is not None)
    details += ["lower case"] * sentence.lower_case
    return f"{cfg.model_type} {cfg.num_layers}x{cfg.hidden_size} {digest[:16]} ({', '.join(details)})"


def _first(prompts: Mapping[str, str], names: Sequence[str], default: str | None) -> str:
    return next((prompts[name] for name in (*names, default) if name in prompts), "")


def _titled(texts: Sequence[str], titles: Sequence[str]) -> list[tuple[str, str]]:
    if len(titles) != len(texts):
        raise InputError(f"there are {len(titles)} titles for {len(texts)} texts; give one for each, '' for none")
    return list(zip(titles, texts, strict=True))
