"""Rank texts by the words they share with a query: TF-IDF, BM25 and its variants, with documents added and deleted at any time.

Postings (how often each word occurs in each document) are kept as arrays. A change merges into them, and the scores of all
postings are computed anew in a few array operations, so that an index that grew is the one that is built at once. bm25s adds the
scores up for a query (Lù, 2024, "BM25S: Orders of magnitude faster lexical search via eager sparse scoring").
"""

import math
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, TypeAlias

import numpy as np

from duonlp.errors import InputError
from duonlp.retrieval.indexes.files import ADVICE, StoreFiles
from duonlp.retrieval.indexes.ranking import best, import_bm25s
from duonlp.util.suggestions import choice

METHODS = ("lucene", "robertson", "atire", "bm25l", "bm25+", "tf-idf")
DELTAS = {"bm25l": 0.5, "bm25+": 1.0}
"""Default of delta, from Lv and Zhai's papers (2011)."""

Tokenize: TypeAlias = Callable[[str], Sequence[str]]
"""A function that splits a text into words."""

IDEOGRAPHS = "\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U000323af"
"""Ranges of Chinese and Japanese characters, between whose words there are no spaces."""

WORD = rf"[^\W{IDEOGRAPHS}]+|[{IDEOGRAPHS}]"
"""A run of letters, digits and underscores, or a single Chinese or Japanese character, as Lucene's standard tokenizer has it."""

FEW = 16
"""The scores of one document in this many, or fewer, are looked up instead of selected from those of all documents."""


@dataclass(frozen=True)
class BM25Options:
    r"""How texts are split into words and scored.

    Attributes:
        method: "lucene", "robertson" or "atire" (BM25 as in Kamphuis et al., 2020, "Which BM25 do you mean?"), "bm25l", "bm25+",
            or "tf-idf" (cosine of smoothed TF-IDF vectors, scikit-learn's default).
        k1: How much the repetition of a word counts, at least 0.
        b: How much the length of a document counts, from 0 to 1.
        delta: Lower bound of a word's weight, in BM25L (default 0.5) and BM25+ (default 1).
        pattern: Regular expression of a word; the default is WORD.
        lowercase: Whether to ignore case.
        stop_words: Words to ignore: a list, or "english" for those of bm25s.

    Raises:
        InputError: An option is invalid.
    """

    method: str = "lucene"
    k1: float = 1.2
    b: float = 0.75
    delta: float | None = None
    pattern: str = WORD
    lowercase: bool = True
    stop_words: str | Sequence[str] = ()

    def __post_init__(self) -> None:
        choice("the BM25 method", self.method, METHODS)
        for name, low, high in (("k1", 0, math.inf), ("b", 0, 1), ("delta", 0, math.inf)):
            value = getattr(self, name)
            if value is None and name == "delta":
                continue
            if (
                isinstance(value, bool)
                or not isinstance(value, (int, float))
                or not low <= value <= high
                or value == math.inf
            ):
                allowed = "a number from 0 to 1" if name == "b" else "a number of at least 0"
                raise InputError(f"{name} of BM25 is {value!r}; expected {allowed}")
        if self.delta is not None and self.method not in DELTAS:
            raise InputError(
                f"delta has no effect with the method {self.method!r}; leave it out, or use 'bm25l' or 'bm25+'"
            )
        if not isinstance(self.lowercase, bool):
            raise InputError(f"lowercase of BM25 is {self.lowercase!r}; expected True or False")
        try:
            groups = re.compile(self.pattern).groups
        except (re.error, TypeError) as error:
            raise InputError(
                f"pattern of BM25 is {self.pattern!r}, which is not a regular expression: {error}"
            ) from None
        if groups > 1:
            raise InputError(
                f"pattern of BM25 is {self.pattern!r}, which has {groups} groups; use (?:...) for all but one"
            )
        words = self.stop_words
        if isinstance(words, str):
            choice("the stop words", words, ("english",))
        elif not isinstance(words, Sequence) or not all(isinstance(word, str) for word in words):
            raise InputError(f"stop_words of BM25 is {words!r}; expected a list of words, or 'english'")
        else:
            object.__setattr__(self, "stop_words", tuple(words))  # so that options read from JSON are equal

    def tokenizer(self) -> Tokenize:
        """Return the function that splits a text into words."""
        find = re.compile(self.pattern).findall
        words = self.stop_words
        if isinstance(words, str):
            import_bm25s()
            from bm25s.stopwords import STOPWORDS_EN

            words = STOPWORDS_EN
        stopped = frozenset(word.lower() if self.lowercase else word for word in words)
        lowercase = self.lowercase

        def tokenize(text: str) -> list[str]:
            tokens = find(text.lower() if lowercase else text)
            return [token for token in tokens if token not in stopped] if stopped else tokens

        return tokenize


class BM25Index:
    """Postings of texts, which are numbered from 0 in the order in which they were added.

    Attributes:
        vocabulary: Index of each word.
        lengths: int32 [documents], number of words of each text.
        starts: int64 [words + 1], where the postings of each word start.
        positions: int32 [postings], numbers of the texts with the word, ascending within a word.
        counts: float32 [postings], how often the word occurs in it.

    Args:
        options: How to score.
        tokenize: Function that splits a text into words; None for that of the options.
    """

    def __init__(self, options: BM25Options, tokenize: Tokenize | None = None):
        self.options = options
        self.tokenize = tokenize or options.tokenizer()
        self.vocabulary: dict[str, int] = {}
        self.lengths = np.zeros(0, np.int32)
        self.starts = np.zeros(1, np.int64)
        self.positions = np.zeros(0, np.int32)
        self.counts = np.zeros(0, np.float32)

    def __len__(self) -> int:
        return len(self.lengths)

    def arrays(self) -> dict[str, np.ndarray]:
        """Return the arrays by name, to be written to files beside the vocabulary."""
        return {name: getattr(self, name) for name in ("lengths", "starts", "positions", "counts")}

    def read(self, files: StoreFiles, documents: int) -> None:
        """Take over what was written.

        Args:
            files: Files whose hashes are right.
            documents: Number of documents in them.

        Raises:
            InputError: The arrays cannot be those of an index.
        """
        self.vocabulary = {word: i for i, word in enumerate(files.vocabulary)}
        self.lengths = files.array("lengths", np.int32, (documents,))
        self.starts = files.array("starts", np.int64, (len(files.vocabulary) + 1,))
        self.positions = files.array("positions", np.int32, (None,))
        self.counts = files.array("counts", np.float32, self.positions.shape)
        if not self._is_valid():
            raise InputError(f"the postings of the store contradict each other; {ADVICE}")

    def update(self, kept: np.ndarray, texts: Sequence[str]) -> None:
        """Delete texts, then add others at the end.

        Args:
            kept: bool [documents], which of the present texts stay; they are numbered anew.
            texts: The texts to add.
        """
        if not kept.all():
            self._delete(kept)
        if texts:
            self._add(texts)
        self.__dict__.pop("_scorer", None)

    def _is_valid(self) -> bool:
        """Return whether the arrays can be those of an index."""
        starts, positions = self.starts, self.positions
        if len(self.vocabulary) != len(starts) - 1 or starts[0] != 0 or starts[-1] != len(positions):
            return False
        sizes = np.diff(starts)
        if (sizes <= 0).any() or (self.lengths < 0).any() or not (np.isfinite(self.counts) & (self.counts >= 1)).all():
            return False
        if not len(positions):
            return True
        ascends = np.diff(positions, prepend=-1) > 0
        ascends[starts[:-1]] = True
        if positions.min() < 0 or positions.max() >= len(self.lengths) or not ascends.all():
            return False
        return bool(np.array_equal(np.bincount(positions, self.counts, len(self.lengths)), self.lengths))

    def _delete(self, kept: np.ndarray) -> None:
        stays = kept[self.positions]
        numbers = np.cumsum(kept, dtype=np.int32) - 1
        self.positions = numbers[self.positions[stays]]
        self.counts = self.counts[stays]
        self.starts = np.concatenate([[0], np.cumsum(stays)])[self.starts]
        self.lengths = self.lengths[kept]
        used = np.diff(self.starts) > 0
        if not used.all():
            words = (word for word, is_used in zip(self.vocabulary, used, strict=True) if is_used)
            self.vocabulary = {word: i for i, word in enumerate(words)}
            self.starts = np.append(self.starts[:-1][used], self.starts[-1])

    def _add(self, texts: Sequence[str]) -> None:
        first, vocabulary, tokenize = len(self.lengths), self.vocabulary, self.tokenize
        ids: list[int] = []
        lengths = np.empty(len(texts), np.int32)
        for i, text in enumerate(texts):
            tokens = tokenize(text)
            lengths[i] = len(tokens)
            ids += [vocabulary.setdefault(token, len(vocabulary)) for token in tokens]
        documents = np.repeat(np.arange(len(texts)), lengths)
        pairs, counts = np.unique(np.array(ids, np.int64) * len(texts) + documents, return_counts=True)
        words, documents = np.divmod(pairs, len(texts))
        old = np.concatenate([self.starts, np.full(len(vocabulary) + 1 - len(self.starts), self.starts[-1])])
        # Each new posting goes to the end of its word's.
        is_new = np.zeros(len(self.positions) + len(words), bool)
        is_new[old[words + 1] + np.arange(len(words))] = True
        for name, added in (("positions", documents + first), ("counts", counts)):
            present = getattr(self, name)
            merged = np.empty(len(is_new), present.dtype)
            merged[is_new], merged[~is_new] = added, present
            setattr(self, name, merged)
        added_starts = np.cumsum(np.bincount(words, minlength=len(vocabulary)))
        self.starts = old + np.concatenate([[0], added_starts])
        self.lengths = np.concatenate([self.lengths, lengths])

    @cached_property
    def _scorer(self) -> Any:
        """bm25s's index of the scores of all postings."""
        options, frequencies = self.options, np.diff(self.starts)
        n, average = len(self.lengths), max(int(self.lengths.sum()), 1) / max(len(self.lengths), 1)
        k1, b, tf = options.k1, options.b, self.counts
        delta = DELTAS.get(options.method, 0.0) if options.delta is None else options.delta
        values, inverse = np.unique(frequencies, return_inverse=True)
        idf = np.array([_idf(options.method, int(df), n) for df in values], np.float32)[inverse]
        norm = (1 - b + b * self.lengths / average).astype(np.float32)  # [documents], of average 1
        absent = np.zeros(len(idf), np.float32)  # [words], the score of a document without the word
        if options.method == "tf-idf":
            data = tf * np.repeat(idf, frequencies)
            squares = np.bincount(self.positions, data.astype(np.float64) ** 2, n).astype(np.float32)
            data *= np.repeat(idf, frequencies) / np.sqrt(squares)[self.positions]
        else:
            norms = norm[self.positions]
            if options.method == "bm25l":
                scaled = tf / norms + np.float32(delta)
                data = (k1 + 1) * scaled / (k1 + scaled)
                absent = idf * np.float32((k1 + 1) * delta / (k1 + delta) if delta else 0)
            elif options.method == "bm25+":
                data = (k1 + 1) * tf / (k1 * norms + tf) + np.float32(delta)
                absent = idf * np.float32(delta)
            else:
                data = tf / (k1 * norms + tf)
                data *= k1 + 1 if options.method == "atire" else 1
            data *= np.repeat(idf, frequencies)
            if options.method in DELTAS:
                data -= np.repeat(absent, frequencies)
        scorer = import_bm25s().BM25(k1=k1, b=b, delta=delta, method="lucene")
        scorer.scores = {"data": data, "indices": self.positions, "indptr": self.starts, "num_docs": n}
        scorer.vocab_dict = self.vocabulary
        scorer.nonoccurrence_array = absent if options.method in DELTAS else None
        scorer.idf = idf
        return scorer

    def search(
        self, query: str, k: int, allowed: np.ndarray | None = None, *, fill: bool = False
    ) -> tuple[np.ndarray, np.ndarray]:
        """Return the k texts that score highest, best first, equal ones in their order.

        Args:
            query: Its words count as often as they occur; unknown ones are ignored.
            k: Maximum number of texts.
            allowed: Ascending numbers of the texts to consider; None for all. Scores are the same.
            fill: Add texts that score no higher than one without any word of the query, the shortest first, as a smoothed
                language model ranks them (Zhai and Lafferty, 2004, "A study of smoothing methods").

        Returns:
            Numbers of the texts, int64 [k], and scores, float32 [k].
        """
        scorer = self._scorer
        words = scorer.get_tokens_ids(self.tokenize(query))
        absent = scorer.nonoccurrence_array
        floor = np.float32(0) if absent is None or not words else absent[np.array(words)].sum()
        if not words:
            scores = np.zeros(len(self.lengths) if allowed is None else len(allowed), np.float32)
        elif allowed is not None and len(allowed) * FEW < len(self.lengths):
            scores = self._look_up(words, allowed) + floor
        else:
            scores = scorer.get_scores_from_ids(words)
            scores = scores if allowed is None else scores[allowed]
        if words and self.options.method == "tf-idf":
            ids, repeats = np.unique(words, return_counts=True)
            scores /= np.float32(np.sqrt(np.sum((repeats * scorer.idf[ids].astype(np.float64)) ** 2)))
        chosen = best(scores, k, float(floor))
        weightless = {word for word in words if not scorer.idf[word]}  # such as those of all texts, in "atire"
        if len(chosen) < k and (fill or weightless):
            others = np.flatnonzero(scores <= floor)
            numbers = others if allowed is None else allowed[others]
            if fill:
                others = others[np.argsort(self.lengths[numbers], kind="stable")]
            else:
                others = others[self._has_any(weightless)[numbers]]
            chosen = np.concatenate([chosen, others[: k - len(chosen)]])
        return (chosen if allowed is None else allowed[chosen]), scores[chosen]

    def _has_any(self, words: Iterable[int]) -> np.ndarray:
        """Return which texts have one of the words, bool [documents]."""
        has = np.zeros(len(self.lengths), bool)
        for word in words:
            has[self.positions[self.starts[word] : self.starts[word + 1]]] = True
        return has

    def _look_up(self, words: Sequence[int], allowed: np.ndarray) -> np.ndarray:
        """Return the scores of a few texts, added in the order in which bm25s adds."""
        scores, data = np.zeros(len(allowed), np.float32), self._scorer.scores["data"]
        for word in words:
            start, stop = self.starts[word], self.starts[word + 1]
            postings = self.positions[start:stop]
            places = np.searchsorted(postings, allowed)
            places[places == len(postings)] = 0
            present = postings[places] == allowed
            scores[present] += data[start + places[present]]
        return scores


def _idf(method: str, df: int, n: int) -> float:
    """Return the weight of a word that is in df of n documents."""
    if method == "tf-idf":
        return math.log((1 + n) / (1 + df)) + 1
    if method == "lucene":
        return math.log(1 + (n - df + 0.5) / (df + 0.5))
    if method == "robertson":  # never negative, as in bm25s
        return math.log(max((n - df + 0.5) / (df + 0.5), 1.0))
    if method == "atire":
        return math.log(n / df)
    return math.log((n + 1) / (df + 0.5)) if method == "bm25l" else math.log((n + 1) / df)
