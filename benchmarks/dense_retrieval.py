"""Find the reviews of SubjQA by embeddings: dense and hybrid retrieval, and re-ranking by a cross-encoder, beside BM25.

    python -m benchmarks dense_retrieval --subjqa TRAIN DEV --model FOLDER [--work FOLDER] [--framework jax] [--json FILE]

The answerable questions of DEV are searched in the reviews of their own product, which are those of both files; the review of the
question's row is the relevant one. FOLDER is a sentence encoder such as all-MiniLM-L6-v2. With --work, a cross-encoder and a
bi-encoder are trained from it on TRAIN, saved there, and used if they are there already. Nearly all questions of DEV are in TRAIN
as well, so everything about the products of DEV is left out of the training.
"""

import argparse
import importlib
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from duonlp.util.files import write_text
from duonlp.util.json_text import to_json

CUTOFFS = (1, 3, 5, 10, 20)
ALL = 1000
"""More than the reviews of any product."""
CANDIDATES = 10
"""Reviews that the cross-encoder reads."""
LENGTH = 128
"""Tokens that reviews are truncated to in training, and with the question in a pair."""


def of_product(row: Mapping[str, Any]) -> dict[str, Any]:
    """Return the filter for the reviews of a question's product."""
    return {"field": "meta.item_id", "operator": "==", "value": row["title"]}


def scores(retriever: Any, questions: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Return recall at CUTOFFS, mAP, and the seconds for all questions."""
    start = time.perf_counter()
    filters = [of_product(row) for row in questions]
    found = retriever.retrieve([row["question"] for row in questions], top_k=ALL, filters=filters)
    seconds = time.perf_counter() - start
    ranks = []
    for row, ranking in zip(questions, found, strict=True):
        matches = (rank for rank, document in enumerate(ranking, 1) if document.content == row["context"])
        ranks.append(next(matches, np.inf))
    recall = {f"recall@{k}": float(np.mean(np.array(ranks) <= k)) for k in CUTOFFS}
    return recall | {"map": float(np.mean(1 / np.array(ranks, float))), "seconds": seconds}


class TopRanked:
    """A retriever whose first CANDIDATES documents are ordered by a ranker, before the others."""

    def __init__(self, retriever: Any, ranker: Any):
        self.retriever, self.ranker = retriever, ranker

    def retrieve(self, queries: Sequence[str], **options: Any) -> list[list[Any]]:
        """Return all documents of each query; see Retriever.retrieve."""
        found = self.retriever.retrieve(queries, **options)
        ranked = self.ranker.rank_all(queries, [documents[:CANDIDATES] for documents in found])
        return [first + documents[CANDIDATES:] for first, documents in zip(ranked, found, strict=True)]


def training_examples(train: Any, retriever: Any, count: int) -> list[Any]:
    """Return the questions with an answer, with negatives of the same product where there are some, and of others."""
    from duonlp.retrieval import hard_negatives

    own = hard_negatives(train, retriever, count, filters=[of_product(row) for row in train], keep_answers=True)
    others = hard_negatives(train, retriever, count, keep_answers=True)
    negatives = (dict.fromkeys((*a.negatives, *b.negatives)) for a, b in zip(own, others, strict=True))
    return [replace(example, negatives=tuple(found)[:count]) for example, found in zip(own, negatives, strict=True)]


def train_ranker(engine: Any, model: Path, folder: Path, train: Any, retriever: Any) -> Path:
    """Train a cross-encoder from an encoder in two epochs and return its folder."""
    from duonlp.checkpoints import open_checkpoint
    from duonlp.data import LabelledBatches
    from duonlp.retrieval import labelled_pairs

    best = folder / "ranker"
    if (best / "config.json").is_file():
        return best
    training = importlib.import_module(f"{engine.__name__}.training")
    pairs = labelled_pairs(training_examples(train, retriever, 2), train)
    tokenizer = open_checkpoint(model).tokenizer()
    batches = LabelledBatches(pairs, tokenizer, 16, max_length=LENGTH)
    labels = {"id2label": {str(i): name for i, name in enumerate(pairs.label_names)}}
    classifier = engine.AutoModelForSequenceClassification.from_pretrained(model, **labels)
    config = training.FitConfig(epochs=2, learning_rate=1e-4, evaluate_every=0, save_every=0)
    print(
        f"training a cross-encoder on {len(pairs.texts)} pairs, {int(pairs.labels.sum())} of them relevant", flush=True
    )
    result = training.fit(classifier, batches, config, folder / "ranker_run")
    result.model.save_pretrained(best, tokenizer)
    print(f"trained in {result.seconds:.0f} s", flush=True)
    return best


def train_encoder(engine: Any, model: Path, folder: Path, train: Any, retriever: Any) -> Path:
    """Train a bi-encoder from a sentence encoder with in-batch negatives in two epochs and return its folder."""
    from duonlp.checkpoints import open_checkpoint
    from duonlp.data.questions import RetrievalBatches

    best = folder / "encoder"
    if (best / "config.json").is_file():
        return best
    training, retrieval = (importlib.import_module(f"{engine.__name__}.{name}") for name in ("training", "retrieval"))
    examples = training_examples(train, retriever, 1)
    tokenizer = open_checkpoint(model).tokenizer()
    options = {"num_negatives": 1, "max_question_length": 32, "max_passage_length": LENGTH}
    batches = RetrievalBatches(examples, tokenizer, 32, **options)
    config = training.FitConfig(epochs=2, learning_rate=2e-5, evaluate_every=0, save_every=0)
    print(f"training a bi-encoder on {len(examples)} questions", flush=True)
    base = engine.AutoModel.from_pretrained(model)
    result = retrieval.fit_biencoder(base, batches, config, folder / "encoder_run")
    result.model.save_pretrained(best, tokenizer)
    print(f"trained in {result.seconds:.0f} s", flush=True)
    return best


def contestants(engine: Any, model: Path, work: Path | None, splits: Sequence[Any]) -> dict[str, Any]:
    """Return the retrievers by name."""
    from duonlp.data.questions import Questions
    from duonlp.retrieval import (
        BM25Retriever,
        CrossEncoderRanker,
        Document,
        DuplicatePolicy,
        EmbeddingRetriever,
        HybridRetriever,
        MemoryStore,
        SentenceEncoder,
    )

    def store(rows: Any, encoder: Any) -> MemoryStore:
        made = MemoryStore()
        documents = {row["context"]: Document(row["context"], {"item_id": row["title"]}) for row in rows}
        vectors = encoder.encode_documents(list(documents))
        for document, vector in zip(documents.values(), vectors, strict=True):
            document.embedding = vector
        made.write_documents(list(documents.values()), DuplicatePolicy.SKIP)
        return made

    def both(rows: Any, encoder: Any) -> tuple[Any, Any]:
        made = store(rows, encoder)
        return BM25Retriever(made, fill=True), EmbeddingRetriever(made, encoder)

    encoder = SentenceEncoder(engine.pipeline("sentence-embedding", model))
    everything = [row for split in splits for row in split]
    keywords, dense = both(everything, encoder)
    found = {"BM25": keywords, "dense": dense, "hybrid": HybridRetriever([keywords, dense])}
    if work is None:
        return found
    products = {row["title"] for row in splits[1]}
    train = Questions([row for row in splits[0] if row["title"] not in products])
    of_train = HybridRetriever(both(train, encoder))
    ranker = engine.pipeline("text-classification", train_ranker(engine, model, work, train, of_train))
    found["hybrid, re-ranked"] = TopRanked(found["hybrid"], CrossEncoderRanker(ranker, max_length=2 * LENGTH))
    trained = engine.pipeline("sentence-embedding", train_encoder(engine, model, work, train, of_train))
    _, dense = both(everything, SentenceEncoder(trained))
    return found | {"dense, fine-tuned": dense, "hybrid, fine-tuned": HybridRetriever([keywords, dense])}


def main(arguments: list[str] | None = None) -> None:
    """Print a table of all methods, and write it as JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--subjqa", nargs=2, type=Path, metavar=("TRAIN", "DEV"))
    parser.add_argument("--model", type=Path, help="folder of a sentence encoder")
    parser.add_argument("--work", type=Path, help="folder for the trained models; without it, none are trained")
    parser.add_argument("--framework", choices=("jax", "tf"), default="jax")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args(arguments)
    if options.subjqa is None or options.model is None:
        print("dense_retrieval needs --subjqa TRAIN DEV and --model FOLDER; skipped")
        return
    from duonlp.data.questions import read_questions

    engine = importlib.import_module(f"{options.framework}nlp")
    splits = [read_questions(file) for file in options.subjqa]
    questions = [row for row in splits[1] if row["answers"]["text"]]
    seen = {(row["question"], row["context"]) for row in splits[0]}
    known = sum((row["question"], row["context"]) in seen for row in questions)
    print(f"{len(questions)} questions, of which {known} occur with their review in the training split", flush=True)
    records = []
    for name, retriever in contestants(engine, options.model, options.work, splits).items():
        record = {"method": name, **scores(retriever, questions)}
        records.append(record)
        figures = "  ".join(f"{key} {value:.3f}" for key, value in record.items() if key != "method")
        print(f"{name:32} {figures}", flush=True)
    if options.json is not None:
        write_text(options.json, to_json({"questions": len(questions), "results": records}, indent=2) + "\n")


if __name__ == "__main__":
    main()
