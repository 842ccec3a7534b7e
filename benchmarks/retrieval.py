"""Index and search synthetic passages: keyword search beside bm25s alone, dense search beside FAISS alone, and additions.

    python -m benchmarks retrieval [--documents N] [--queries N] [--rounds N] [--subjqa TRAIN DEV] [--json FILE]

Passages are words drawn by Zipf's law, and queries are words of a passage. The contestants take turns, each in its own process;
every one gets texts (or vectors) and returns documents (the libraries alone: their numbers and scores). Then 1,000 documents are
added to a store, and its results are compared with those of a store that is built at once.

With the two files of SubjQA, it also prints recall and mAP of every keyword method on the answerable questions of the second
file, searched in the reviews of the question's own product, which are those of both files.
"""

import argparse
import re
import statistics
import time
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks._interleave import Setting, Work, interleave, machine, ratios
from benchmarks._report import drop_missing
from duonlp.util.files import write_text
from duonlp.util.json_text import to_json

KEYWORDS = ("bm25s (NumPy)", "bm25s", "duonlp")
EMBEDDINGS = ("faiss", "duonlp FaissStore", "duonlp MemoryStore")
SIZE, TOP_K, ADDED = 384, 10, 1000
CUTOFFS = (1, 3, 5, 10, 20)


def synthetic_passages(count: int, seed: int = 0) -> list[str]:
    """Return passages of 20 to 100 words of a vocabulary of 50,000, distributed by Zipf's law."""
    rng = np.random.default_rng(seed)
    weights = 1 / np.arange(1, 50_001)
    lengths = rng.integers(20, 101, count)
    words = rng.choice(len(weights), int(lengths.sum()), p=weights / weights.sum())
    names = [f"word{i}" for i in range(len(weights))]
    ends = np.cumsum(lengths)
    return [" ".join([names[w] for w in words[end - length : end]]) for end, length in zip(ends, lengths, strict=True)]


def synthetic_queries(passages: list[str], count: int) -> list[str]:
    """Return queries of eight words of a passage each."""
    rng = np.random.default_rng(1)
    chosen = (passages[i].split() for i in rng.integers(0, len(passages), count))
    return [" ".join(rng.choice(words, 8)) for words in chosen]


def synthetic_vectors(count: int, seed: int) -> np.ndarray:
    """Return random unit vectors, float32 [count, SIZE]."""
    vectors = np.random.default_rng(seed).standard_normal((count, SIZE), np.float32)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def prepare(name: str, setting: Setting) -> Work:
    """Build an index and return the search of all queries."""
    from duonlp.retrieval import BM25Retriever, Document, FaissStore, MemoryStore

    passages = synthetic_passages(setting["documents"])
    if setting["search"] == "keywords":
        queries = synthetic_queries(passages, setting["queries"])
        if name == "duonlp":
            store = MemoryStore()
            store.write_documents([Document(text, id=str(i)) for i, text in enumerate(passages)])
            retriever = BM25Retriever(store, top_k=TOP_K)
            return lambda: retriever.retrieve(queries)
        import bm25s

        find = re.compile(r"\w+").findall
        index = bm25s.BM25(k1=1.2, b=0.75)
        index.index([find(text.lower()) for text in passages], show_progress=False)
        backend = "numpy" if "NumPy" in name else "auto"
        return lambda: index.retrieve(
            [find(query.lower()) for query in queries], k=TOP_K, show_progress=False, backend_selection=backend
        )
    vectors, queries = synthetic_vectors(len(passages), 0), synthetic_vectors(setting["queries"], 1)
    if name == "faiss":
        import faiss

        flat = faiss.IndexFlatIP(SIZE)
        flat.add(vectors)
        return lambda: flat.search(queries, TOP_K)
    store = FaissStore() if "Faiss" in name else MemoryStore()
    pairs = enumerate(zip(passages, vectors, strict=True))
    store.write_documents([Document(text, id=str(i), embedding=vector) for i, (text, vector) in pairs])
    return lambda: store.search_embeddings(queries, top_k=TOP_K)


def additions(documents: int) -> dict[str, Any]:
    """Return the seconds of adding 1,000 documents to a store and of the next search, and whether all results are equal."""
    from duonlp.retrieval import Document, MemoryStore

    passages = synthetic_passages(documents + ADDED)
    queries = synthetic_queries(passages, 50)
    all_documents = [Document(text, id=str(i)) for i, text in enumerate(passages)]
    store = MemoryStore()
    start = time.perf_counter()
    store.write_documents(all_documents[:documents])
    store.search_keywords(queries[:1])
    built = time.perf_counter() - start
    start = time.perf_counter()
    store.write_documents(all_documents[documents:])
    store.search_keywords(queries[:1])
    added = time.perf_counter() - start
    rebuilt = MemoryStore()
    rebuilt.write_documents(all_documents)
    found, expected = (s.search_keywords(queries, top_k=100) for s in (store, rebuilt))
    equal = [[(d.id, d.score) for d in r] for r in found] == [[(d.id, d.score) for d in r] for r in expected]
    start = time.perf_counter()
    store.delete_documents([document.id for document in all_documents[:ADDED]])
    store.search_keywords(queries[:1])
    return {"built": built, "added": added, "deleted": time.perf_counter() - start, "equal": equal}


def subjqa(train: Path, dev: Path) -> list[dict[str, Any]]:
    """Return recall at CUTOFFS and mAP of keyword methods on SubjQA.

    Args:
        train: The CSV of the training split.
        dev: The CSV of the split with the questions.
    """
    from duonlp.data.questions import read_questions
    from duonlp.retrieval import BM25Options, BM25Retriever, Document, DuplicatePolicy, MemoryStore

    splits = [read_questions(file) for file in (train, dev)]
    documents = [Document(row["context"], {"item_id": row["title"]}) for split in splits for row in split]
    questions = [row for row in splits[1] if row["answers"]["text"]]
    filters = [{"field": "meta.item_id", "operator": "==", "value": row["title"]} for row in questions]
    records = []
    for method in ("lucene", "robertson", "atire", "bm25l", "bm25+", "tf-idf"):
        for fill in (False, True):
            store = MemoryStore(bm25=BM25Options(method=method))
            store.write_documents(documents, DuplicatePolicy.SKIP)
            retriever = BM25Retriever(store, top_k=1000, fill=fill)
            found = retriever.retrieve([row["question"] for row in questions], filters=filters)
            ranks = []
            for row, ranking in zip(questions, found, strict=True):
                matches = [i for i, document in enumerate(ranking, 1) if document.content == row["context"]]
                ranks.append(matches[0] if matches else np.inf)
            recall = {k: float(np.mean(np.array(ranks) <= k)) for k in CUTOFFS}
            reciprocal = float(np.mean(1 / np.array(ranks, float)))  # one review is relevant
            records.append(
                {"method": method, "fill": fill, "recall": recall, "map": reciprocal, "questions": len(ranks)}
            )
    return records


def main(arguments: list[str] | None = None) -> None:
    """Run the benchmark and print its tables."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks retrieval", description=__doc__.splitlines()[0])
    parser.add_argument("--documents", type=int, default=100_000, help="number of passages (default %(default)s)")
    parser.add_argument("--queries", type=int, default=200, help="queries per timed call (default %(default)s)")
    parser.add_argument("--rounds", type=int, default=7, help="timed turns of each contestant (default %(default)s)")
    parser.add_argument("--subjqa", type=Path, nargs=2, metavar=("TRAIN", "DEV"), help="CSV files of SubjQA")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all figures to a file")
    options = parser.parse_args(arguments)
    report: dict[str, Any] = {"machine": machine(), "documents": options.documents, "rounds": options.rounds}
    for search, names in (("keywords", KEYWORDS), ("embeddings", EMBEDDINGS)):
        setting = {"search": search, "documents": options.documents, "queries": options.queries}
        seconds = interleave("benchmarks.retrieval", names, setting, options.rounds)
        relative = ratios(seconds, names[0])
        print(f"\n| {search} | queries/s | time, {names[0]} = 1 |\n|---|---:|---:|")
        for name, values in drop_missing(seconds):
            print(f"| {name} | {options.queries / statistics.median(values):.0f} | {relative[name]:.2f} |")
        report[search] = {"seconds": seconds, "ratios": relative}
    report["additions"] = record = additions(options.documents)
    print(
        f"\n{options.documents} documents: built in {record['built']:.1f} s; {ADDED} added in {record['added']:.2f} s and deleted "
        f"in {record['deleted']:.2f} s, a search included; results {'equal' if record['equal'] else 'DIFFERENT'}"
    )
    if options.subjqa:
        report["subjqa"] = subjqa(*options.subjqa)
        print(f"\n| method | fill | {' | '.join(f'recall@{k}' for k in CUTOFFS)} | mAP |\n|---|---|{'---:|' * 6}")
        for r in report["subjqa"]:
            print(
                f"| {r['method']} | {r['fill']} | {' | '.join(f'{v:.3f}' for v in r['recall'].values())} | {r['map']:.3f} |"
            )
    if options.json:
        write_text(options.json, to_json(report, indent=2) + "\n")


if __name__ == "__main__":
    main()
