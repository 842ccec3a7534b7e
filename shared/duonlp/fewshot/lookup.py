"""Nearest neighbors: a text gets the labels that enough of the most similar labeled texts have.

The method of chapter 9 of Tunstall, von Werra and Wolf, Natural Language Processing with Transformers (2022): embed the labeled
texts, look up the k nearest of a new text, and assign the labels that at least m of them have. k and m are searched on labeled
texts. An inverted file (IVF) of c clusters compares a text with c centroids and with the n / c vectors of a cluster, which
c = sqrt(n) minimizes.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np

from duonlp.errors import CheckpointError, InputError
from duonlp.fewshot.classifier import ClassifierFiles, FewShotData, check_settings, write_classifier
from duonlp.fewshot.linear import ENCODER, ENCODER_SETTINGS, load_encoder
from duonlp.metrics.report import macro_f1, micro_f1
from duonlp.pipelines.embedding import POOLINGS, TextEncoder
from duonlp.retrieval.indexes.ranking import import_faiss
from duonlp.retrieval.indexes.vectors import FaissIndex, VectorIndex
from duonlp.schema import choice, integer
from duonlp.tasks.base import check_choice, check_int
from duonlp.typing import Engine
from duonlp.util.pictures import check_picture_file, picture, require_matplotlib

INDEXES = ("flat", "ivf")
SCORES = ("macro_f1", "micro_f1")
TIE = 1e-4
"""Weight that breaks ties between labels with equally many votes, in votes; with one label per text only."""

COUNT = integer(1, 1 << 24)


def search_cost(count: int, clusters: int, probes: int = 1) -> float:
    """Return the number of vectors that an IVF index compares a query with: k + n / k for k clusters of n vectors.

    Args:
        count: Number of vectors n.
        clusters: Number of clusters k.
        probes: Clusters that are searched.
    """
    return clusters + min(probes, clusters) * count / clusters


def best_clusters(count: int, probes: int = 1) -> int:
    """Return the number of clusters that minimizes :func:`search_cost`, sqrt(probes * n), at most n."""
    return max(1, min(count, round(math.sqrt(probes * count))))


class NeighborIndex:
    """Vectors whose nearest neighbors are found with FAISS, by inner product.

    Args:
        vectors: float32 [n, d], of unit length for cosine similarity.
        index: "flat" compares a query with all vectors; "ivf" with those of the nearest clusters.
        clusters: Clusters of an IVF index; None for sqrt(n), see :func:`best_clusters`.
        probes: Clusters that are searched. More find more of the true neighbors, and take longer.

    Attributes:
        clusters: Number of clusters; 0 of a flat index.

    Raises:
        InputError: There are no vectors, more clusters than vectors, or an argument is invalid.
        MissingExtraError: faiss-cpu is not installed.
    """

    def __init__(self, vectors: np.ndarray, index: str = "flat", clusters: int | None = None, probes: int = 8):
        check_choice("index", index, INDEXES)
        check_int("clusters", clusters, minimum=1, optional=True)
        check_int("probes", probes, minimum=1)
        import_faiss("an index of neighbors", "few-labels")
        vectors = np.ascontiguousarray(vectors, np.float32)
        if vectors.ndim != 2 or not len(vectors):
            raise InputError(
                f"an index of neighbors got vectors of shape {list(vectors.shape)}; give at least one text"
            )
        self.clusters = 0
        if index == "flat":
            self._index = FaissIndex(vectors.shape[1], "Flat")
        else:
            self.clusters = clusters or best_clusters(len(vectors))
            if self.clusters > len(vectors):
                raise InputError(
                    f"clusters is {self.clusters}, but there are {len(vectors)} vectors; pass at most that"
                )
            self._index = FaissIndex(vectors.shape[1], f"IVF{self.clusters},Flat", f"nprobe={probes}")
            self._index.faiss.cp.min_points_per_centroid = (
                1  # sqrt(n) clusters of less than 1,521 vectors are fine here
            )
        self._index.update(np.zeros(0, bool), list(vectors))

    def __len__(self) -> int:
        return len(self._index)

    def search(self, queries: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        """Return the nearest vectors of each query, nearest first.

        A query in whose clusters an IVF index finds fewer than k is compared with all vectors.

        Args:
            queries: float32 [queries, d].
            k: Number of neighbors.

        Returns:
            Numbers int64 [queries, k] and inner products float32 [queries, k].

        Raises:
            InputError: k exceeds the number of vectors.
        """
        check_int("k", k, minimum=1)
        if k > len(self):
            raise InputError(f"k is {k}, but the index has {len(self)} vectors; pass a k of at most {len(self)}")
        queries = np.ascontiguousarray(queries, np.float32)
        found = self._index.search(queries, k, [None] * len(queries))
        for row, (numbers, _) in enumerate(found):
            if len(numbers) < k:
                found[row] = VectorIndex.search(self._index, queries[row : row + 1], k, [np.arange(len(self))])[0]
        if not found:
            return np.zeros((0, k), np.int64), np.zeros((0, k), np.float32)
        return np.stack([numbers for numbers, _ in found]), np.stack([products for _, products in found])


@dataclass(frozen=True, eq=False)
class LookupSearch:
    """F1 scores of every k and m, as heat maps.

    Attributes:
        micro_f1: float32 [K, M]; row k - 1, column m - 1. NaN where m exceeds k.
        macro_f1: Like it: the mean over labels, 0 for those that are neither true nor predicted.
    """

    micro_f1: np.ndarray
    macro_f1: np.ndarray

    def best(self, maximize: str, k: int | None = None, m: int | None = None) -> tuple[int, int]:
        """Return the k and m with the highest score, the smallest of equals; those given are kept.

        Args:
            maximize: "macro_f1" or "micro_f1".
            k: Value of k, or None.
            m: Value of m, or None.
        """
        scores = np.nan_to_num(np.asarray(getattr(self, maximize)), nan=-1.0)
        rows = np.arange(1, len(scores) + 1)
        allowed = ((rows[:, None] == k) | (k is None)) & ((rows == m) | (m is None))
        row, column = np.unravel_index(np.where(allowed, scores, -2.0).argmax(), scores.shape)
        return int(row) + 1, int(column) + 1

    def plot(self, file: str | Path) -> None:
        """Save the two heat maps, with the best k and m of each marked.

        Raises:
            InputError: The file's name does not end in .png, .svg or .pdf, or its folder does not exist.
            MissingExtraError: matplotlib is not installed.
        """
        file = Path(file)
        check_picture_file(file)
        require_matplotlib("heat maps are plotted")
        size = len(self.micro_f1)
        with picture(file, 9, 4) as figure:
            for axes, name in zip(figure.subplots(1, 2), reversed(SCORES), strict=True):
                scores = getattr(self, name)
                image = axes.imshow(scores.T, origin="lower", extent=(0.5, size + 0.5, 0.5, size + 0.5), cmap="viridis")
                k, m = self.best(name)
                axes.plot([k], [m], "x", color="#c1440e")
                axes.set(
                    xlabel="neighbors k", ylabel="votes m", title=f"{name[:5]} F1, best {scores[k - 1, m - 1]:.3f}"
                )
                axes.xaxis.get_major_locator().set_params(integer=True)
                axes.yaxis.get_major_locator().set_params(integer=True)
                figure.colorbar(image, ax=axes)


def search_votes(neighbors: np.ndarray, known: np.ndarray, labels: np.ndarray) -> LookupSearch:
    """Return the F1 scores of labels from neighbors, for every k up to their number and every m up to k.

    Args:
        neighbors: int [n, K], the labeled texts nearest to each text, nearest first.
        known: Labels of the labeled texts: int32 [N], or float32 [N, C] with several labels per text.
        labels: Labels of the texts, like `known`.
    """
    classes = int(max(known.max(initial=0), labels.max(initial=0))) + 1 if known.ndim == 1 else known.shape[1]
    table, single = _indicators(known, classes), known.ndim == 1
    true, most = _indicators(labels, classes), neighbors.shape[1]
    maps = np.full((2, most, most), np.nan, np.float32)
    for k in range(1, most + 1):
        votes = _votes(neighbors[:, :k], table, ties=single)
        for m in range(1, k + 1):
            predicted = votes >= m
            if single:
                predicted &= votes.argmax(1)[:, None] == np.arange(classes)
            maps[:, k - 1, m - 1] = micro_f1(predicted, true), macro_f1(predicted, true, classes="all")
    return LookupSearch(*maps)


def _indicators(labels: np.ndarray, classes: int) -> np.ndarray:
    """Return labels as bool [n, C]."""
    return labels[:, None] == np.arange(classes) if labels.ndim == 1 else labels > 0.5


def _votes(neighbors: np.ndarray, table: np.ndarray, ties: bool) -> np.ndarray:
    """Return the number of neighbors with each label, float64 [n, C]; with `ties`, nearer ones count a little more."""
    k = neighbors.shape[1]
    weights = np.ones(k)
    if ties:
        weights += TIE * np.arange(k, 0, -1) / (k * (k + 1))  # adds less than TIE to all votes together
    votes = np.zeros((len(neighbors), table.shape[1]))
    for column, weight in zip(neighbors.T, weights, strict=True):
        votes += weight * table[column]
    return votes


class LookupClassifier:
    """Labels of a text's nearest neighbors.

    Attributes:
        label_names: See :class:`duonlp.fewshot.Classifier`.
        multi_label: See there.
        k: Number of neighbors.
        m: Number of them that must have a label.
        search: Scores of all k and m that were tried, or None if none were.
    """

    def __init__(
        self,
        encoder: TextEncoder,
        vectors: np.ndarray,
        labels: np.ndarray,
        label_names: tuple[str, ...],
        index: dict[str, Any],
        k: int,
        m: int,
        search: LookupSearch | None = None,
    ):
        self.encoder, self.vectors, self.labels, self.label_names = encoder, vectors, labels, label_names
        self.multi_label = labels.ndim == 2
        self._settings, self.k, self.m, self.search = index, k, m, search
        self.index = NeighborIndex(vectors, **index)
        self._table = _indicators(labels, len(label_names))

    def neighbors(self, texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        """Return the nearest labeled texts, as numbers int64 [n, k] in the training data, and similarities float32 [n, k]."""
        return self.index.search(self.encoder(texts), self.k)

    def shares(self, texts: Sequence[str]) -> np.ndarray:
        """Return the share of the k neighbors that have each label, float32 [n, C]."""
        return (_votes(self.neighbors(texts)[0], self._table, ties=False) / self.k).astype(np.float32)

    def scores(self, texts: Sequence[str]) -> np.ndarray:
        """Return the score of each label, float32 [n, C].

        With one label per text, it is the share of the neighbors with the label; of labels with equally many, the one with nearer
        neighbors scores up to 0.0001 more. With several, shares are rescaled, by one line up to m / k and another above,
        so that a score of 0.5 or more means that at least m neighbors have the label; 0 and 1 still mean none and all.
        """
        votes = _votes(self.neighbors(texts)[0], self._table, ties=not self.multi_label)
        if not self.multi_label:
            return (votes / votes.sum(1, keepdims=True)).astype(np.float32)
        above = 0.5 + 0.5 * (votes - self.m) / max(self.k - self.m, 1)
        return np.where(votes == self.k, 1.0, np.where(votes >= self.m, above, 0.5 * votes / self.m)).astype(np.float32)

    def predict(self, texts: Sequence[str]) -> np.ndarray:
        """Return the labels that at least m neighbors have, bool [n, C]; with one label per text, only the most frequent one."""
        votes = _votes(self.neighbors(texts)[0], self._table, ties=not self.multi_label)
        predicted = votes >= self.m
        return predicted if self.multi_label else predicted & (votes.argmax(1)[:, None] == np.arange(votes.shape[1]))

    def save(self, folder: str | Path) -> None:
        """Write the vectors, the labels and the encoder; the index is built again from them."""
        encoder = self.encoder
        settings = {"k": self.k, "m": self.m, **encoder.settings(), **self._settings}
        arrays = {"vectors": self.vectors, "labels": self.labels}
        if self.search is not None:
            arrays |= {name: getattr(self.search, name) for name in SCORES}
        files = ClassifierFiles("lookup", self.label_names, self.multi_label, settings, arrays)
        write_classifier(files, folder, lambda new: encoder.save(new / ENCODER))

    @classmethod
    def load(cls, files: ClassifierFiles, package: Engine | None) -> Self:
        """Return the classifier of a folder.

        Raises:
            CheckpointError: It is damaged.
        """
        settings = check_settings(files, SETTINGS)
        vectors = files.array("vectors", np.float32, (None, None))
        count, classes = len(vectors), len(files.label_names)
        labels = (
            files.array("labels", np.float32, (count, classes))
            if files.multi_label
            else files.array("labels", np.int32, (count,))
        )
        encoder = load_encoder(files, package)
        in_range = files.multi_label or (labels.min(initial=0) >= 0 and labels.max(initial=0) < classes)
        fits = settings["m"] <= settings["k"] <= count and (settings["clusters"] or 1) <= count
        if not (in_range and fits and vectors.shape[1] == encoder.size and np.isfinite(vectors).all()):
            raise CheckpointError(
                f"{files.folder}: labels, vectors, k, m, clusters and the encoder do not fit each other; train again"
            )
        index = {name: settings[name] for name in ("index", "clusters", "probes")}
        search = None
        if SCORES[0] in files.arrays:
            most = len(files.array(SCORES[0], np.float32, (None, None)))
            search = LookupSearch(**{name: files.array(name, np.float32, (most, most)) for name in SCORES})
        return cls(encoder, vectors, labels, files.label_names, index, settings["k"], settings["m"], search)


SETTINGS = {
    "k": COUNT,
    "m": COUNT,
    **ENCODER_SETTINGS,
    "index": choice(*INDEXES),
    "clusters": COUNT | None,
    "probes": COUNT,
}
"""Kinds of a classifier's settings."""


@dataclass(frozen=True)
class Lookup:
    """Look up the k nearest labeled texts, and assign the labels that at least m of them have.

    What is not given of k and m is searched: on the validation texts, or without any on the training texts, each of which is then
    labeled by the others. With one label per text, m decides only which texts :meth:`LookupClassifier.predict` gives none,
    and is 1 unless it is given.

    Args:
        model: A sentence encoder, or with `pooling` any encoder or decoder: a folder or a Hub id.
        k: Number of neighbors, at most the number of training texts; None to search it.
        m: Number of neighbors that must have a label; None to search it.
        max_k: Largest k that is tried; with fewer texts, their number.
        maximize: What the search maximizes, "macro_f1" or "micro_f1".
        pooling: "mean", "first", "last" or "max"; None for that of the sentence encoder. See :func:`duonlp.pipelines.embed`.
        max_length: Maximum number of tokens of a text.
        batch_size: Texts that are embedded together.
        index: See :class:`NeighborIndex`, as for the following.
        clusters: Clusters of an IVF index; None for sqrt(n).
        probes: Clusters that are searched.

    Raises:
        InputError: A setting is invalid.
    """

    name: ClassVar[str] = "lookup"
    needs_engine: ClassVar[bool] = True
    needs_unlabelled: ClassVar[bool] = False
    classifier: ClassVar[type[LookupClassifier]] = LookupClassifier

    model: str | Path
    k: int | None = None
    m: int | None = None
    max_k: int = 20
    maximize: str = "macro_f1"
    pooling: str | None = None
    max_length: int | None = 128
    batch_size: int | None = 32
    index: str = "flat"
    clusters: int | None = None
    probes: int = 8

    def __post_init__(self) -> None:
        for name in ("k", "m", "clusters"):
            check_int(name, getattr(self, name), minimum=1, optional=True)
        for name in ("max_k", "probes"):
            check_int(name, getattr(self, name), minimum=1)
        check_choice("maximize", self.maximize, SCORES)
        check_choice("index", self.index, INDEXES)
        check_choice("pooling", self.pooling, (*POOLINGS, None))
        if self.k is not None and self.m is not None and self.m > self.k:
            raise InputError(f"m is {self.m}, but only k = {self.k} neighbors vote; pass an m of at most {self.k}")

    def fit(
        self, package: Engine | None, data: FewShotData, *, seed: int = 0, console: Any = False
    ) -> LookupClassifier:
        """Embed the training texts, and search k and m; nothing is random, whatever the seed.

        Raises:
            InputError: There are no training texts, or fewer than k or m.
        """
        train, validation = data.train, data.validation
        if self.index == "ivf" and self.clusters is not None and self.clusters > len(train):
            raise InputError(
                f"clusters is {self.clusters}, but there are {len(train)} training texts; pass at most that, or None"
            )
        for name in ("k", "m"):
            value = getattr(self, name)
            if value is not None and value > len(train):
                raise InputError(
                    f"{name} is {value}, but there are {len(train)} labeled texts to look up; pass at most {len(train)}, or "
                    "None to search it"
                )
        if not len(train):
            raise InputError("lookup needs labeled texts; give at least one, or use a zero-shot method")
        encoder = TextEncoder(package, self.model, self.pooling, self.max_length, self.batch_size)
        vectors = encoder(train.texts)
        m = 1 if self.m is None and not train.multi_label else self.m
        settings = {"index": self.index, "clusters": self.clusters, "probes": self.probes}
        if self.k is not None and m is not None:
            return LookupClassifier(encoder, vectors, train.labels, train.label_names, settings, self.k, m)
        index = NeighborIndex(vectors, **settings)
        if validation is not None and len(validation):
            most = min(len(train), max(self.max_k, self.k or 0, m or 0))
            neighbors, labels = index.search(encoder(validation.texts), most)[0], validation.labels
        else:
            most = min(len(train) - 1, max(self.max_k, self.k or 0, m or 0))
            neighbors, labels = leave_one_out(index, vectors, most), train.labels
        if not most or max(self.k or 0, m or 0) > most:  # as many as there are texts, so no search is possible
            k = self.k or max(m or 1, most)
            return LookupClassifier(encoder, vectors, train.labels, train.label_names, settings, k, m or 1)
        search = search_votes(neighbors, train.labels, labels)
        k, m = search.best(self.maximize, self.k, m)
        return LookupClassifier(encoder, vectors, train.labels, train.label_names, settings, k, m, search)


def leave_one_out(index: NeighborIndex, vectors: np.ndarray, k: int) -> np.ndarray:
    """Return the k nearest other vectors of each vector of an index, int64 [n, k].

    Args:
        index: Index of the vectors.
        vectors: float32 [n, d].
        k: Number of neighbors, less than n.
    """
    if not k:
        return np.zeros((len(vectors), 0), np.int64)
    numbers = index.search(vectors, k + 1)[0]
    others = numbers != np.arange(len(vectors))[:, None]
    others[others.all(1), -1] = False  # more than k vectors equal this one, which is not among them
    return numbers[others].reshape(len(vectors), k)
