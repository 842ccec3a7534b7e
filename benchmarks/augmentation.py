"""Substitute words by a masked language model: batched over texts and positions, beside one call of "fill-mask" for each word.

    python -m benchmarks augmentation --model FOLDER --data FILE [--framework NAME] [--texts N] [--rounds N] [--json FILE]

Both read the same texts, at most 1,000 characters of each, and choose the same 15% of their words. A call for one word reads 250
characters on either side of it; the batches read all of a text, in windows of 128 tokens. The two take turns.
"""

import argparse
import statistics
import time
from typing import Any

from benchmarks._interleave import machine
from duonlp.augmentation import MaskedSubstitution, RandomEdits
from duonlp.augmentation.augmenter import Draws
from duonlp.augmentation.rows import read_rows
from duonlp.util.files import write_text
from duonlp.util.frameworks import load_package
from duonlp.util.json_text import to_json

SHARE, CHARACTERS, CONTEXT, LENGTH = 0.15, 1000, 250, 128


def word_by_word(masked: MaskedSubstitution, texts: list[str]) -> None:
    """Predict the words of each text with a call of the pipeline for each of them."""
    mask = masked.pipe.tokenizer.mask_token
    for text in texts:
        pieces = masked.protect.pieces(text)
        words = len(pieces) // 2
        for number in Draws(0, text, 0, "masked").order(words)[: max(1, int(SHARE * words))]:
            before, after = "".join(pieces[: 2 * number + 1]), "".join(pieces[2 * number + 2 :])
            row = f"{before[-CONTEXT:]}{mask}{after[:CONTEXT]}"
            answers = masked.pipe(row, top_k=masked.top_k, truncation=True, max_length=LENGTH)
            pieces[2 * number + 1] = answers[0]["token_str"]


def measure(masked: MaskedSubstitution, texts: list[str], rounds: int) -> dict[str, list[float]]:
    """Return the texts per second of each round, by contestant."""
    few = texts[: max(1, len(texts) // 4)]
    works: dict[str, tuple[Any, int]] = {
        "duonlp": (lambda seed: masked.augment(texts, 1, seed), len(texts)),
        "word by word": (lambda seed: word_by_word(masked, few), len(few)),
        "random edits": (lambda seed: RandomEdits().augment(texts, 1, seed), len(texts)),
    }
    speeds: dict[str, list[float]] = {name: [] for name in works}
    for number in range(rounds + 1):  # the first round compiles
        for name, (work, count) in works.items():
            start = time.perf_counter()
            work(number)
            speeds[name] += [count / (time.perf_counter() - start)] if number else []
    return speeds


def main(arguments: list[str] | None = None) -> None:
    """Measure and print texts per second."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks augmentation")
    parser.add_argument("--model", default="", help="masked language model: a folder or a Hub id")
    parser.add_argument("--data", default="", help="table with texts")
    parser.add_argument("--text-column", default=None)
    parser.add_argument("--framework", default="")
    parser.add_argument("--texts", type=int, default=24)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", default="")
    options = parser.parse_args(arguments)
    if not (options.model and options.data):
        print("augmentation: skipped; pass --model and --data")
        return
    package, framework = load_package(options.framework)
    rows = read_rows(options.data, text_column=options.text_column)
    step = max(1, len(rows.rows) // options.texts)
    chosen = list(zip(rows.rows, rows.columns, strict=True))[::step][: options.texts]
    texts = ["\n\n".join(row[column] for column in columns)[:CHARACTERS] for row, columns in chosen]
    pipe = package.pipeline("fill-mask", options.model, batch_size=8)
    speeds = measure(MaskedSubstitution(pipe, SHARE, max_length=LENGTH), texts, options.rounds)
    medians = {name: statistics.median(values) for name, values in speeds.items()}
    for name, median in medians.items():
        print(f"{name:>14}: {median:10.2f} texts/s")
    print(f"duonlp / word by word: {medians['duonlp'] / medians['word by word']:.1f} ({framework})")
    if options.json:
        report = {"machine": machine(), "framework": framework, "texts": len(texts), "texts_per_second": speeds}
        write_text(options.json, to_json(report, indent=2) + "\n")
