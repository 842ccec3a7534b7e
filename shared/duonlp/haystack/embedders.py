"""Haystack components that embed texts and documents with a sentence encoder."""

import os
from dataclasses import replace
from typing import Any

from haystack import Document, component

from duonlp.errors import InputError
from duonlp.haystack.components import ModelComponent, check_documents, check_names, text_of
from duonlp.retrieval import SentenceEncoder
from duonlp.tasks.base import check_bool, check_int, check_string


class Embedder(ModelComponent):
    """Embeds texts with a :class:`duonlp.retrieval.SentenceEncoder`; see :class:`TextEmbedder` for the arguments."""

    task = "sentence-embedding"

    def __init__(
        self,
        model: str | os.PathLike[str],
        framework: str,
        prefix: str | None,
        suffix: str,
        normalize_embeddings: bool | None,
        model_kwargs: dict[str, Any] | None,
    ) -> None:
        super().__init__(model, framework, model_kwargs)
        check_string("prefix", prefix, optional=True)
        check_string("suffix", suffix)
        check_bool("normalize_embeddings", normalize_embeddings, optional=True)
        self.prefix, self.suffix, self.normalize_embeddings = prefix, suffix, normalize_embeddings

    def encoder(self, batch_size: int | None = None) -> SentenceEncoder:
        """Return the encoder of queries and documents, which both have the prefix."""
        return SentenceEncoder(
            self.pipeline(),
            self.prefix,
            self.prefix,
            normalize=self.normalize_embeddings,
            batch_size=batch_size,
            name=self.model,
        )


@component
class TextEmbedder(Embedder):
    """Embed a text, such as a query, with a sentence encoder in Keras or Flax.

    Args:
        model: A checkpoint of sentence-transformers, or an encoder, whose tokens are averaged.
        framework: "tf" or "jax"; "" for the installed one, jax if both are.
        prefix: Text before each text, such as "query: " for E5; None for the checkpoint's prompt for queries, if it has one.
        suffix: Text after each text.
        normalize_embeddings: Whether to scale vectors to unit length; None does unless the model was trained for inner products.
        model_kwargs: Further arguments of ``pipeline``, such as revision, local_files_only and dtype.

    Raises:
        InputError: An argument is invalid.
    """

    def __init__(
        self,
        model: str | os.PathLike[str],
        *,
        framework: str = "",
        prefix: str | None = None,
        suffix: str = "",
        normalize_embeddings: bool | None = None,
        model_kwargs: dict[str, Any] | None = None,
    ) -> None:
        Embedder.__init__(self, model, framework, prefix, suffix, normalize_embeddings, model_kwargs)

    @component.output_types(embedding=list[float])
    def run(self, text: str) -> dict[str, list[float]]:
        """Return {"embedding": the vector of the text}.

        Args:
            text: A text.

        Raises:
            InputError: It is not a text.
        """
        if not isinstance(text, str):
            raise InputError(f"text is a {type(text).__name__}; expected a text, or use DocumentEmbedder for documents")
        return {"embedding": self.encoder().encode_queries([text + self.suffix])[0].tolist()}


@component
class DocumentEmbedder(Embedder):
    """Embed documents with a sentence encoder in Keras or Flax.

    Args:
        model: A checkpoint of sentence-transformers, or an encoder, whose tokens are averaged.
        framework: "tf" or "jax"; "" for the installed one, jax if both are.
        prefix: Text before each text, such as "passage: " for E5; None for the checkpoint's prompt for documents, if it has one.
        suffix: Text after each text.
        batch_size: Maximum number of texts in a batch.
        progress_bar: Whether to show a progress bar; None shows one on a terminal if the work takes long.
        normalize_embeddings: Whether to scale vectors to unit length; None does unless the model was trained for inner products.
        meta_fields_to_embed: Meta fields whose values precede the content of a document.
        embedding_separator: Text between these values and the content.
        model_kwargs: Further arguments of ``pipeline``, such as revision, local_files_only and dtype.

    Raises:
        InputError: An argument is invalid.
    """

    def __init__(
        self,
        model: str | os.PathLike[str],
        *,
        framework: str = "",
        prefix: str | None = None,
        suffix: str = "",
        batch_size: int = 32,
        progress_bar: bool | None = None,
        normalize_embeddings: bool | None = None,
        meta_fields_to_embed: list[str] | None = None,
        embedding_separator: str = "\n",
        model_kwargs: dict[str, Any] | None = None,
    ) -> None:
        Embedder.__init__(self, model, framework, prefix, suffix, normalize_embeddings, model_kwargs)
        check_int("batch_size", batch_size, minimum=1)
        check_bool("progress_bar", progress_bar, optional=True)
        check_string("embedding_separator", embedding_separator)
        self.batch_size, self.progress_bar = batch_size, progress_bar
        self.meta_fields_to_embed = check_names("meta_fields_to_embed", meta_fields_to_embed)
        self.embedding_separator = embedding_separator

    @component.output_types(documents=list[Document])
    def run(self, documents: list[Document]) -> dict[str, list[Document]]:
        """Return {"documents": copies of the documents with embeddings}.

        Args:
            documents: Documents with a text.

        Raises:
            InputError: They are not documents, or have no text.
        """
        texts = [text_of(d, self.meta_fields_to_embed, self.embedding_separator) for d in check_documents(documents)]
        for document, text in zip(documents, texts, strict=True):
            if not (text + self.suffix).strip():
                raise InputError(f"document {document.id!r} has no text to embed; leave it out")
        self.pipeline().progress = self.progress_bar
        vectors = self.encoder(self.batch_size).encode_documents([text + self.suffix for text in texts])
        return {
            "documents": [replace(d, embedding=vector.tolist()) for d, vector in zip(documents, vectors, strict=True)]
        }
