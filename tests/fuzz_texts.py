"""Texts that are hard to tokenize, at random, and a comparison of tokenizers in a graph with Hugging Face's on them.

python -m tests.fuzz_texts --count 100000
"""

import argparse
import random
import time
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

RANGES = (
    (0x20, 0x7E), (0x20, 0x7E), (0x61, 0x7A), (0x0, 0x1F), (0x7F, 0xFF), (0x100, 0x24F), (0x300, 0x36F), (0x370, 0x3FF),
    (0x400, 0x4FF), (0x590, 0x6FF), (0x900, 0x97F), (0xE00, 0xE7F), (0x1100, 0x11FF), (0x1E00, 0x1EFF), (0x2000, 0x206F),
    (0x2070, 0x21FF), (0x2460, 0x24FF), (0x3000, 0x30FF), (0x3130, 0x318F), (0x3200, 0x33FF), (0x4E00, 0x9FFF),
    (0xAC00, 0xD7A3), (0xE000, 0xE010), (0xF900, 0xFAFF), (0xFB00, 0xFB4F), (0xFE00, 0xFE0F), (0xFF00, 0xFFEF),
    (0xFFF0, 0xFFFF), (0x1D400, 0x1D7FF), (0x1F1E6, 0x1F1FF), (0x1F300, 0x1F6FF), (0x1F900, 0x1F9FF), (0x20000, 0x2A6DF),
    (0x2F800, 0x2FA1F), (0xE0000, 0xE007F), (0x10FFF0, 0x10FFFF), (0x80, 0xD7FF), (0x10000, 0x1FFFF),
)  # fmt: skip
"""Ranges of code points."""

PHRASES = (
    "the", "The", "film", "don't", "we'll", "I've", "'s", "'S", "''", "``", "it's", "1999", "3.14", "3,000", "e-mail",
    "U.S.A.", "http://example.org/a?b=c", "C++", "na\u00efve", "caf\u00e9", "cafe\u0301", "\u0130stanbul",
    "Stra\u00dfe", "\ufb01ne", "\u6771\u4eac", "\u3053\u3093\u306b\u3061\u306f", "\uc548\ub155", "\u1112\u1161\u11ab",
    "\u0645\u0631\u062d\u0628\u0627", "\u05e9\u05dc\u05d5\u05dd", "\u0e2a\u0e27\u0e31\u0e2a\u0e14\u0e35",
    "\u0928\u092e\u0938\u094d\u0924\u0947", "\u2122", "\u00bd", "\U0001f600",
    "\U0001f469\u200d\U0001f469\u200d\U0001f467", "\U0001f44d\U0001f3fd", "\U0001f1e9\U0001f1ea", "\u2764\ufe0f",
    "def f(x):\n    return x", "\t", "\n", "\r\n", "  ", "   ", "\u00a0", "\u3000", "\u200b", "\u200d", "\ufeff",
    "\x00", "\ufffd", "\u00ad", "\u2028", "\x85", "\u1680", "\u180e", "a" * 101, "b" * 30, "...", "!!!", "--",
    "\u2014", "\u2581", "\u2581the", "##ing",
)  # fmt: skip


def fuzz_text(rng: random.Random, tokens: Sequence[str] = ()) -> str:
    """Return a text of words, characters of all kinds and special tokens."""
    parts = []
    for _ in range(rng.choice((0, 1, 2, 3, 5, 8, 13)) if rng.random() < 0.98 else rng.randrange(50, 200)):
        kind = rng.random()
        if kind < 0.35:
            parts.append(rng.choice(PHRASES))
        elif kind < 0.45 and tokens:
            token = rng.choice(tokens)
            parts.append(token if rng.random() < 0.8 else token[: rng.randrange(len(token) + 1)])
        elif kind < 0.6:
            parts.append("".join(rng.choice("etaoinshrdlu") for _ in range(rng.randrange(1, 12))))
        elif kind < 0.8:
            low, high = rng.choice(RANGES)
            parts.append("".join(map(_character, (rng.randint(low, high) for _ in range(rng.randrange(1, 6))))))
        else:
            parts.append("".join(_character(rng.randint(*rng.choice(RANGES))) for _ in range(rng.randrange(1, 6))))
        parts.append(rng.choice((" ", " ", " ", "", "", "  ", "\n", "\t")))
    return "".join(parts)


def _character(code: int) -> str:
    return chr(code if not 0xD800 <= code < 0xE000 else 0x41)


def differences(
    hf: Any, count: int, seed: int = 0, *, pairs: bool = False, chunk: int = 500, **options: Any
) -> Iterator[str]:
    """Yield what differs between a tokenizer and its copy in a graph: ids, token types and offsets of fuzzed texts.

    Args:
        hf: A fast tokenizer of Transformers.
        count: Number of texts.
        seed: Which texts.
        pairs: Whether to tokenize pairs of texts.
        chunk: Number of texts in a batch.
        options: ``max_length`` and ``strategy``, see GraphTokenizer.rows.
    """
    import tensorflow as tf

    from duonlp.util.tokenization import tokenize
    from tfnlp.text.tokenizer import GraphTokenizer

    graph = GraphTokenizer(hf)
    columns = 1 + pairs
    rows = tf.function(
        lambda *texts: graph.rows(*texts, **options), [tf.TensorSpec([None], tf.string)] * columns, autograph=False
    )
    keywords = {"return_offsets_mapping": True, "return_token_type_ids": True, "verbose": False}
    if "max_length" in options:
        keywords |= {"max_length": options["max_length"], "truncation": options.get("strategy", "longest_first")}
    rng, tokens = random.Random(seed), [token.content for token in hf.added_tokens_decoder.values()]
    for _ in range(0, count, chunk):
        texts = [[fuzz_text(rng, tokens) for _ in range(chunk)] for _ in range(columns)]
        result, expected = rows(*map(tf.constant, texts)), tokenize(hf, *texts, **keywords)
        ends = result.lengths.numpy().cumsum()
        ids, types, offsets = (
            [part.tolist() for part in np.split(column, ends[:-1])]
            for column in (result.ids.numpy(), result.types.numpy(), np.stack([result.begins, result.ends], 1))
        )
        for i in range(chunk):
            text = [column[i] for column in texts]
            if ids[i] != expected["input_ids"][i] or types[i] != expected["token_type_ids"][i]:
                yield f"ids: {text!r}: {ids[i]} instead of {expected['input_ids'][i]}"
            elif [tuple(pair) for pair in offsets[i]] != expected["offset_mapping"][i]:
                yield f"offsets: {text!r}: {offsets[i]} instead of {expected['offset_mapping'][i]}"


def main() -> None:
    """Compare the tokenizers of the tests on many texts."""
    from tests.graph_tokenizers import TOKENIZERS

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=100_000)
    parser.add_argument("--only", nargs="*", default=list(TOKENIZERS))
    parser.add_argument("--seed", type=int, default=1)
    arguments = parser.parse_args()
    for name in arguments.only:
        start, counts = time.monotonic(), {"ids": 0, "offsets": 0}
        for difference in differences(TOKENIZERS[name](), arguments.count, arguments.seed):
            kind = difference.split(":")[0]
            counts[kind] += 1
            if counts[kind] <= 3:
                print(difference[:1000])
        seconds = time.monotonic() - start
        print(f"{name}: {arguments.count:,} texts, {seconds:.0f} s, differences: {counts}")


if __name__ == "__main__":
    main()
