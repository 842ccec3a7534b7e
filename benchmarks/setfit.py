"""Train SetFit on a few texts per label in both packages and in PyTorch, in turns, each time in a new process.

    python -m benchmarks setfit --data FILE --model FOLDER [--text-column title,body] [--labels 9] [--per-label 8] [--json FILE]

FILE is read by read_labelled_texts; its most frequent labels are kept, `--per-label` texts with each are trained on, and up to
500 others are scored. The contestant "torch" trains the same pairs in the same order with CosineSimilarityLoss of
sentence-transformers and AdamW, as setfit does, and fits the same logistic regression. Seconds include loading, compiling and
training, "cpu_seconds" are those of all threads, and "process" also has the start of Python and all imports.
"""

import argparse
import importlib
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from duonlp.data import LabelledTexts, read_labelled_texts
from duonlp.data.cleaning.report import CleaningReport
from duonlp.util.files import write_text
from duonlp.util.json_text import to_json

CONTESTANTS = ("jaxnlp", "tfnlp", "torch")
TESTED = 500
"""Most texts to score."""


def split(options: argparse.Namespace) -> tuple[LabelledTexts, LabelledTexts]:
    """Return the texts to train on, `per_label` with each label, and others to score."""
    source = options.data, options.split
    texts = read_labelled_texts(*source, text_column=options.text_column, report=CleaningReport())
    counts = np.array(list(texts.counts().values()))
    labels = np.sort(np.argsort(-counts, kind="stable")[: options.labels])
    if texts.multi_label:
        flags = texts.labels[:, labels]
        rows, ids = np.flatnonzero(flags.any(axis=1)), flags
    else:
        rows = np.flatnonzero(np.isin(texts.labels, labels))
        ids = np.searchsorted(labels, texts.labels).clip(max=len(labels) - 1).astype(np.int32)
    joined = ["\n\n".join(text) if isinstance(text, tuple) else text for text in texts.texts]
    kept = LabelledTexts(joined, ids, tuple(texts.label_names[i] for i in labels)).take(rows)
    has = kept.labels if kept.multi_label else np.eye(len(labels))[kept.labels]
    order = np.random.default_rng(options.seed).permutation(len(kept))
    chosen = np.zeros(len(kept), bool)
    for label in np.argsort(has.sum(axis=0)):  # the rarest first
        missing = max(options.per_label - int(has[chosen, label].sum()), 0)
        chosen[[row for row in order if has[row, label] and not chosen[row]][:missing]] = True
    return kept.take(order[chosen[order]]), kept.take(order[~chosen[order]][:TESTED])


def torch_classifier(method: Any, texts: LabelledTexts, seed: int) -> Any:
    """Return a function from texts to scores, trained in PyTorch."""
    import torch
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer import losses
    from transformers import get_linear_schedule_with_warmup

    from duonlp.fewshot.linear_head import LinearHead
    from duonlp.fewshot.setfit_pairs import ContrastiveBatches

    torch.manual_seed(seed)
    body = SentenceTransformer(method.model, device="cpu")
    body.max_seq_length = min(method.max_length, body.max_seq_length or method.max_length)
    batches = ContrastiveBatches(texts, body.tokenizer, method.batch_size, max_length=body.max_seq_length, seed=seed)
    steps = min(method.max_steps, len(batches))
    optimizer = torch.optim.AdamW(body.parameters(), method.learning_rate, weight_decay=0.01)
    schedule = get_linear_schedule_with_warmup(optimizer, int(method.warmup_share * steps), steps)
    loss, names = losses.CosineSimilarityLoss(body), ("input_ids", "attention_mask", "token_type_ids")
    body.train()
    for _, batch in zip(range(steps), batches.epoch(0)):
        pairs = [{name: torch.tensor(batch[name][:, i]).long() for name in names} for i in (0, 1)]
        loss(pairs, torch.tensor(batch["similarity"])).backward()
        torch.nn.utils.clip_grad_norm_(body.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
    body.eval()
    head = LinearHead.fit(
        body.encode(texts.texts), texts.labels, len(texts.label_names), method.inverse_regularization, method.balanced
    )
    return lambda texts: head.scores(body.encode(texts))


def scores(labels: np.ndarray, probabilities: np.ndarray) -> dict[str, float]:
    """Return the accuracy, or for several labels the F1 and the mean average precision."""
    if labels.ndim == 1:
        return {"accuracy": float((probabilities.argmax(axis=1) == labels).mean())}
    from sklearn.metrics import average_precision_score, f1_score

    found = probabilities >= 0.5
    f1 = {f"{kind}_f1": f1_score(labels, found, average=kind, zero_division=0) for kind in ("micro", "macro")}
    return f1 | {"average_precision": average_precision_score(labels, probabilities, average="macro")}


def work(name: str, options: argparse.Namespace) -> dict[str, float]:
    """Train one contestant; return its seconds and scores."""
    from duonlp.fewshot import FewShotData
    from duonlp.fewshot.setfit import SetFit

    train, test = split(options)
    method = SetFit(model=options.model, max_steps=options.steps, max_length=options.max_length)
    package = None if name == "torch" else importlib.import_module(name)
    start, cpu = time.perf_counter(), time.process_time()
    if package is None:
        score = torch_classifier(method, train, options.seed)
    else:
        score = method.fit(package, FewShotData(train), seed=options.seed).scores
    spent = {"seconds": time.perf_counter() - start, "cpu_seconds": time.process_time() - cpu}
    return {"texts": len(train), **spent, **scores(test.labels, score(test.texts))}


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks setfit", description=__doc__.splitlines()[0])
    parser.add_argument("--data", help="file of labeled texts")
    parser.add_argument("--split", help="split of the file, if it has several")
    parser.add_argument("--text-column", help="column of the text, or several, comma-separated")
    parser.add_argument("--model", help="folder of a sentence encoder")
    parser.add_argument("--labels", type=int, default=9, help="most frequent labels to keep")
    parser.add_argument("--per-label", type=int, default=8, help="texts with each label to train on")
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--max-length", type=int, default=128)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--contestants", nargs="+", choices=CONTESTANTS, default=CONTESTANTS)
    parser.add_argument("--json", type=Path, help="file to write the results to")
    parser.add_argument("--worker", choices=CONTESTANTS, help=argparse.SUPPRESS)
    given = list(sys.argv[2:] if arguments is None else arguments)
    options = parser.parse_args(given)
    if not options.data or not options.model:
        print("setfit: give --data and --model to run it")
        return
    if options.worker:
        print(to_json(work(options.worker, options)))
        return
    results: dict[str, list[dict[str, float]]] = {name: [] for name in options.contestants}
    for _ in range(options.rounds):
        for name in options.contestants:
            start = time.perf_counter()
            command = [sys.executable, "-m", "benchmarks", "setfit", *given, "--worker", name]
            done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, check=True)
            results[name].append(json.loads(done.stdout.splitlines()[-1]) | {"process": time.perf_counter() - start})
    for name, runs in results.items():
        medians = {key: statistics.median(run[key] for run in runs) for key in runs[0]}
        print(f"{name:8}" + "  ".join(f"{key} {value:.4g}" for key, value in medians.items()))
    if options.json:
        write_text(options.json, to_json(results, indent=2))


if __name__ == "__main__":
    main()
