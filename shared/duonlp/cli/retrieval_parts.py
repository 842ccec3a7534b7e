"""The retriever, ranker and generator that an option of the command line names."""

import importlib
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any

from duonlp.cli.common import cli_option
from duonlp.errors import InputError
from duonlp.util.reading import parse_json

if TYPE_CHECKING:
    from duonlp.rag import RagPipeline
    from duonlp.retrieval import Encoder, Filters, MemoryStore, Ranker, Retriever
    from duonlp.retrieval.prompting import PromptGenerator
    from duonlp.typing import Engine

BM25 = "bm25"
HYBRID = f"{BM25}+"

Ranking = Annotated[str, cli_option("--ranker", help="Cross-encoder that sorts the passages found (default: none).")]
Encoding = Annotated[str, cli_option(help="Encoding of the files, such as cp1252 (default: UTF-8).")]


def check_threshold(threshold: float | None) -> None:
    """Raise InputError if --threshold is NaN, which nothing is above."""
    if threshold is not None and math.isnan(threshold):
        raise InputError(f"--threshold is {threshold}; it must be a number, such as 0")


def encoder_model(retriever: str) -> str:
    """Return the model in the name of a retriever: "" for bm25, MODEL for MODEL and for bm25+MODEL."""
    return "" if retriever == BM25 else retriever.removeprefix(HYBRID)


def load_encoder(package: "Engine", retriever: str) -> "Encoder | None":
    """Return the encoder of a retriever; None for bm25.

    Args:
        package: tfnlp or jaxnlp.
        retriever: "bm25", a sentence encoder, DPR's question and context encoders separated by a comma, or "bm25+" and one of
            these.

    Raises:
        InputError: The checkpoint is no encoder.
        CheckpointError: It cannot be found or read.
    """
    from duonlp.pipelines import trained_pipeline
    from duonlp.retrieval import DPREncoder, SentenceEncoder

    model = encoder_model(retriever)
    if not model:
        return None
    names = model.split(",")
    if len(names) > 2 or not all(names):
        raise InputError(
            f"--retriever is {retriever!r}; give {BM25}, a model, DPR's question and context encoders as QUESTION,CONTEXT, or "
            f"{HYBRID} and one of these"
        )
    first, *others = [trained_pipeline(package, "sentence-embedding", name) for name in names]
    return DPREncoder(first, others[0]) if others else SentenceEncoder(first)


def make_retriever(
    retriever: str, store: "MemoryStore", encoder: "Encoder | None", *, fill: bool = False
) -> "Retriever":
    """Return the retriever of a name over a store that has the encoder's embeddings.

    Args:
        retriever: See :func:`load_encoder`.
        store: The store.
        encoder: The encoder; None for bm25.
        fill: Whether bm25 adds documents without any word of the query where too few have one.
    """
    from duonlp.retrieval import BM25Retriever, EmbeddingRetriever, HybridRetriever

    if encoder is None:
        return BM25Retriever(store, fill=fill)
    dense = EmbeddingRetriever(store, encoder)
    return HybridRetriever([BM25Retriever(store), dense]) if retriever.startswith(HYBRID) else dense


def load_ranker(package: "Engine", model: str) -> "Ranker | None":
    """Return the cross-encoder of a checkpoint; None for "".

    Raises:
        InputError: The checkpoint has no trained classifier.
        CheckpointError: It cannot be found or read.
    """
    from duonlp.pipelines import trained_pipeline
    from duonlp.retrieval import CrossEncoderRanker

    return CrossEncoderRanker(trained_pipeline(package, "text-classification", model)) if model else None


def load_generator(package: "Engine", model: str, options: dict[str, Any]) -> "PromptGenerator | RagPipeline":
    """Return the generator of a checkpoint that writes text: a decoder, an encoder-decoder or a RAG model.

    Args:
        package: tfnlp or jaxnlp.
        model: A folder in Hugging Face layout, or a Hub id.
        options: Arguments of PromptGenerator and options of the pipeline; of a RAG model, those of RagPipeline.

    Raises:
        InputError: The checkpoint writes no text, or an option is invalid.
        CheckpointError: It cannot be found or read.
    """
    from duonlp.checkpoints import open_checkpoint
    from duonlp.rag import RagPipeline
    from duonlp.rag.config import MODEL_TYPE
    from duonlp.retrieval.prompting import PromptGenerator

    checkpoint = open_checkpoint(model)
    if checkpoint.config.get("model_type") == MODEL_TYPE:
        loading = {name: options.pop(name) for name in ("dtype", "revision") if name in options}
        rag = importlib.import_module(f"{package.__name__}.rag")
        # RAG-Token unless the checkpoint says otherwise, as facebook/rag-token-nq, whose architecture is RagModel
        is_sequence = "RagSequenceForGeneration" in (checkpoint.config.get("architectures") or ())
        loaded = (rag.RagSequence if is_sequence else rag.RagToken).from_pretrained(model, **loading)
        return RagPipeline(loaded, None, **options)
    saved = checkpoint.head
    task = {"causal-lm": "text-generation", "seq2seq-lm": "text2text-generation"}.get(saved)
    if task is None:
        raise InputError(
            f"{model!r} has the head {saved}, which writes no text; give a causal or sequence-to-sequence model"
        )
    loading = {name: options.pop(name) for name in ("dtype", "revision", "batch_size") if name in options}
    return PromptGenerator(package.pipeline(task, model, **loading), **options)


def parse_filters(pairs: Sequence[str]) -> "Filters | None":
    """Return a filter from KEY=VALUE pairs; values of one key are alternatives. None without pairs.

    A value matches as a text, and also as the number, boolean or null that it is in JSON.

    Raises:
        InputError: A text is not KEY=VALUE.
    """
    values: dict[str, list[Any]] = {}
    for pair in pairs:
        key, equals, text = pair.partition("=")
        key = key.strip()
        if not equals or not key:
            raise InputError(f"--filter {pair!r} is not KEY=VALUE; write for example --filter item_id=B00001P4ZH")
        allowed = values.setdefault(key.removeprefix("meta."), [])
        allowed.append(text)
        try:
            value = parse_json(text)
        except ValueError:
            continue
        if value is None or isinstance(value, (bool, int, float)):
            allowed.append(value)
    conditions = [{"field": f"meta.{key}", "operator": "in", "value": allowed} for key, allowed in values.items()]
    if len(conditions) <= 1:
        return conditions[0] if conditions else None
    return {"operator": "AND", "conditions": conditions}
