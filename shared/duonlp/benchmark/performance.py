"""How well and how fast a text classifier answers: accuracy, size, latency, throughput and memory in one record.

After the PerformanceBenchmark of Tunstall, von Werra and Wolf, "Natural Language Processing with Transformers" (2022),
chapter 8, for pipelines of any origin: of either framework here, of Transformers, quantised ones, ONNX ones, a function.
"""

import datetime
import hashlib
import json
import os
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from duonlp.benchmark.memory import Memory, watched
from duonlp.benchmark.record import BenchmarkRecord, Latency, packed
from duonlp.benchmark.timing import time_batches, time_queries
from duonlp.errors import InputError
from duonlp.metrics.classification import classification_scores, label_id
from duonlp.parameters import count_parameters
from duonlp.pipelines.pipeline import Pipeline, Progress
from duonlp.tasks.base import check_int
from duonlp.util.machine_info import machine

PAIR = "text", "text_pair"
"""What pipelines call the two texts of a pair."""

WEIGHTS = (".safetensors", ".onnx", ".onnx_data", ".data", ".tflite", ".keras", ".h5", ".pb")
"""Endings of files that hold a model's weights, where there is no checkpoint's model.safetensors."""


class PerformanceBenchmark:
    """Measures one pipeline over labelled texts.

    Args:
        pipeline: called with one text it gives ``{"label": ..., "score": ...}``, or a list of them, of which the highest
            score counts; called with a list of texts, a list of such answers.
        texts: a LabelledTexts, one label each: the labels are the pipeline's own names of them.
        name: of the model in tables and pictures.
        folder: of the model, or its one file: what it takes on disk.
        size: bytes it takes on disk, where there is no folder.
        framework, model: for the record: "tf" or "jax", and where the model came from.
        out_of_scope: the label that says a text is none of the other labels'.
        threshold: an answer with a lower score counts as the out-of-scope label, whatever it is.
        queries: so many of the texts are timed one by one, spread evenly over all; None for all.
        repeats: how often each of them.
        warm_up: untimed calls before, after one of every text that is timed, which compiles every shape there will be.
        batch_size: of the batches for accuracy and throughput; None when the pipeline takes one text at a time.
        samples: keep every measurement in the record; comparing two runs takes them.
        clock: seconds, of any start.

    Raises:
        InputError: no text, several labels a text, an unknown out-of-scope label, a threshold without one, or a label in the
            texts that the pipeline cannot give.
    """

    def __init__(
        self,
        pipeline: Callable[..., Any],
        texts: Any,
        name: str,
        *,
        folder: str | os.PathLike | None = None,
        size: int | None = None,
        framework: str | None = None,
        model: str | None = None,
        out_of_scope: str | None = None,
        threshold: float | None = None,
        queries: int | None = 200,
        repeats: int = 1,
        warm_up: int = 20,
        batch_size: int | None = 32,
        samples: bool = True,
        clock: Callable[[], float] = time.perf_counter,
    ):
        if not callable(pipeline):
            raise InputError(f"the pipeline is a {type(pipeline).__name__}; give something that is called with a text")
        if not isinstance(name, str) or not name.strip():
            raise InputError(f"the name is {name!r}; give a text, for tables and pictures")
        check_int("queries", queries, minimum=1, optional=True)
        check_int("repeats", repeats, minimum=1)
        check_int("warm_up", warm_up, minimum=0)
        check_int("batch_size", batch_size, minimum=1, optional=True)
        self.texts = [text if isinstance(text, str) else dict(zip(PAIR, text, strict=True)) for text in texts.texts]
        self.labels, self.label_names = np.asarray(texts.labels), list(texts.label_names)
        self._check_texts()
        if out_of_scope is not None:
            label_id(self.label_names, out_of_scope)
        if threshold is not None and out_of_scope is None:
            raise InputError(f"threshold is {threshold}, and there is no out-of-scope label; name it with out_of_scope")
        if threshold is not None and not 0 <= threshold <= 1:
            raise InputError(f"threshold is {threshold}; it must be a score from 0 to 1")
        self.pipeline, self.name, self.framework, self.model = pipeline, name, framework, model
        self.folder, self.size = None if folder is None else Path(folder), size
        self.out_of_scope, self.threshold = out_of_scope, threshold
        self.repeats, self.warm_up, self.batch_size = repeats, warm_up, batch_size
        self.samples, self.clock = samples, clock
        count = len(self.texts) if queries is None else min(queries, len(self.texts))
        self.queries = [self.texts[i] for i in np.linspace(0, len(self.texts) - 1, count).round().astype(int)]
        self.data = digest(self.texts, self.labels, self.label_names)
        self._check_labels()

    def _check_texts(self) -> None:
        if not self.texts:
            raise InputError("there is no text to measure with; give at least one, with its label")
        if self.labels.shape != (len(self.texts),) or self.labels.dtype.kind not in "iu":
            raise InputError(
                f"the labels are {self.labels.dtype} {list(self.labels.shape)} for {len(self.texts)} texts; "
                "a benchmark needs the number of one label for each text"
            )
        wrong = self.labels[(self.labels < 0) | (self.labels >= len(self.label_names))]
        if wrong.size:
            raise InputError(
                f"there is a label {int(wrong[0])}, and {len(self.label_names)} label names; number them from 0"
            )

    def _check_labels(self) -> None:
        """Raises InputError where the pipeline says which labels it has, and one of the texts' is not among them."""
        known = getattr(getattr(self.pipeline, "config", None), "labels", None)
        if not known:
            return
        used = [self.label_names[i] for i in np.unique(self.labels)]
        missing = [name for name in used if name not in known and (self.threshold is None or name != self.out_of_scope)]
        if missing:
            raise InputError(
                f"{self.name!r} has no label {some(missing)}, which texts have; its labels are {some(list(known))}. "
                "Give texts with the model's labels, a model that was trained with theirs, or a threshold where it is the "
                "out-of-scope label"
            )

    def run(self, *, progress: bool | None = None) -> BenchmarkRecord:
        """Everything, as a record."""
        return benchmark_together([self], progress=progress)[0]

    def compute_accuracy(self, advance: Callable[[int], None] | None = None) -> tuple[dict[str, float], np.ndarray]:
        """Answers every text.

        Args:
            advance: called with how many were answered since the last call.

        Returns:
            shares from 0 to 1 (accuracy, macro_f1, and with an out-of-scope label those of its kind), and which
            examples were answered right, bool [n].

        Raises:
            InputError: an answer that is no label with a score, or a label that texts do not know.
        """
        answers = []
        for part in self.parts(self.texts, 20 * (self.batch_size or 1)):
            answers += self.answers(part)
            if advance is not None:
                advance(len(part))
        predicted = np.array([self.label_of(*each) for each in answers], np.int64)
        outside = None if self.out_of_scope is None else self.label_names.index(self.out_of_scope)
        # scored as logits that are sure of it; a label that no text can have is a class of its own
        certain = np.eye(len(self.label_names) + 1)[predicted]
        scores = classification_scores(certain, self.labels, outside)
        del scores["loss"]
        return scores, predicted == self.labels

    def answers(self, texts: Sequence[str]) -> list[tuple[str, float]]:
        """(label, score) of each text, in batches unless the pipeline takes one text at a time."""
        if self.batch_size is None:
            results = [self.pipeline(text) for text in texts]
        elif isinstance(self.pipeline, Pipeline):  # which sorts by length
            results = self.pipeline(list(texts), batch_size=self.batch_size, progress=False)
        else:
            results = [answer for part in self.parts(texts, self.batch_size) for answer in self.pipeline(part)]
        if len(results) != len(texts):
            raise InputError(
                f"{self.name!r} gave {len(results)} answers to {len(texts)} texts; it must give one to each, "
                "or set batch_size=None when it takes one text at a time"
            )
        return [best_answer(result, self.name) for result in results]

    @staticmethod
    def parts(texts: Sequence[str], size: int) -> Iterator[list[str]]:
        """The texts, so many at once."""
        for start in range(0, len(texts), size):
            yield list(texts[start : start + size])

    def label_of(self, label: str, score: float) -> int:
        """The number of the label that an answer stands for, by the threshold; -1 for one that no text can have.

        Raises:
            InputError: nobody knows the label, neither the texts nor the pipeline's own configuration.
        """
        if self.threshold is not None and score < self.threshold:
            label = self.out_of_scope
        if label in self.label_names:
            return self.label_names.index(label)
        if label in (getattr(getattr(self.pipeline, "config", None), "labels", None) or ()):
            return -1  # the model knows more labels than there are in these texts: its answer is wrong
        raise InputError(
            f"{self.name!r} answers {label!r}, which is not among the labels of the texts ({some(self.label_names)}); "
            "give texts with the names that the model has for its labels"
        )

    def compute_size(self) -> dict[str, int | None]:
        """{"size": bytes on disk, "parameters": number of weights}; None for what is not known.

        Raises:
            InputError: the folder has no file of weights.
        """
        size = self.size if self.folder is None else sum(path.stat().st_size for path in model_files(self.folder))
        parameters = None
        if isinstance(self.pipeline, Pipeline):
            parameters = count_parameters(self.pipeline.config, self.pipeline.task.head)
        return {"size": size, "parameters": parameters}

    def warm(self) -> None:
        """The untimed calls: each text that is timed, which compiles every shape, then some more."""
        for text in self.queries:
            self.pipeline(text)
        for i in range(self.warm_up):
            self.pipeline(self.queries[i % len(self.queries)])
        if self.batch_size is not None:
            self.answers(self.queries)

    def time_pipeline(self) -> Latency:
        """Latency of one text at a time, after warm-up."""
        self.warm()
        return time_queries([self])[0]

    def time_batches(self) -> float | None:
        """Examples a second in batches, after warm-up; None where the pipeline takes one text at a time."""
        if self.batch_size is None:
            return None
        self.warm()
        return time_batches([self])[0]


def benchmark_together(
    benchmarks: Sequence[PerformanceBenchmark],
    *,
    progress: bool | None = None,
) -> list[BenchmarkRecord]:
    """Runs several benchmarks over the same texts, their timed queries in turns, so that drift of the machine hits all.

    All are in this process, so they should be of one framework: thread pools of two get in each other's way. The record's
    memory is that of the process while it answered, and is left out with several (see duonlp.benchmark.memory for a
    process of each).

    Args:
        progress: show a progress bar; None shows one on a terminal when the work will take a while.

    Raises:
        InputError: two of one name, other texts or queries, or as :class:`PerformanceBenchmark`.
    """
    check_alike(benchmarks)
    run, date = uuid.uuid4().hex[:12], datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    memory: list[Memory] = []
    total = sum(len(each.texts) + 2 * len(each.queries) for each in benchmarks)
    with Progress(total, progress, "measuring") as bar:
        sizes = [each.compute_size() for each in benchmarks]
        scores = [each.compute_accuracy(bar.advance) for each in benchmarks]
        for each in benchmarks:
            each.warm()
            bar.advance(2 * len(each.queries))
    on = machine()  # its load is that just before the clock starts; no bar from here on, which is drawn by a thread
    with watched(memory):
        latencies, throughputs = time_queries(benchmarks), time_batches(benchmarks)
    records = []
    for i, each in enumerate(benchmarks):
        outside = None if each.out_of_scope is None else each.labels == each.label_names.index(each.out_of_scope)
        records.append(
            BenchmarkRecord(
                each.name, run, date, each.data, len(each.texts), scores[i][0], packed(scores[i][1]), latencies[i],
                throughput=throughputs[i], batch_size=each.batch_size, **sizes[i],
                memory=memory[0] if memory and len(benchmarks) == 1 else None, framework=each.framework,
                model=each.model or (None if each.folder is None else str(each.folder)),
                out_of_scope=each.out_of_scope, threshold=each.threshold,
                out_of_scope_examples=None if outside is None else packed(outside), machine=on,
            )
        )  # fmt: skip
    return records


def check_alike(benchmarks: Sequence[PerformanceBenchmark]) -> None:
    """Raises InputError for benchmarks that cannot be measured in turns."""
    if not benchmarks:
        raise InputError("there is nothing to measure; give at least one benchmark")
    names, first = [each.name for each in benchmarks], benchmarks[0]
    for each in benchmarks:
        if names.count(each.name) > 1:
            raise InputError(f"two models are named {each.name!r}; give each a name of its own")
        if (each.data, each.queries, each.repeats) != (first.data, first.queries, first.repeats):
            raise InputError(
                f"{each.name!r} and {first.name!r} have other texts, queries or repeats; models are measured in turns over "
                "the same queries"
            )


def best_answer(result: Any, name: str) -> tuple[str, float]:
    """The label with the highest score, and that score.

    Raises:
        InputError: it is neither a label with its score nor a list of them.
    """
    answers = [result] if isinstance(result, Mapping) else result
    good = isinstance(answers, Sequence) and answers and not isinstance(answers, str)
    if not good or not all(isinstance(each, Mapping) and {"label", "score"} <= set(each) for each in answers):
        raise InputError(
            f'{name!r} answered {repr(result)[:80]}; a pipeline must give {{"label": ..., "score": ...}} for a text, or a '
            "list of them, and for a list of texts a list of such (batch_size=None calls it with one text at a time)"
        )
    best = max(answers, key=lambda each: each["score"])
    return best["label"], float(best["score"])


def model_files(folder: Path) -> list[Path]:
    """The files that hold a model's weights: a checkpoint's, or else every file of weights in the folder, or the one file.

    Raises:
        InputError: there is none.
    """
    if folder.is_file():
        beside = [folder.with_name(folder.name + ending) for ending in ("_data", ".data")]
        return [folder, *(path for path in beside if path.is_file())]
    index, single = folder / "model.safetensors.index.json", folder / "model.safetensors"
    if single.is_file():
        return [single]
    if index.is_file():
        shards = json.loads(index.read_text(encoding="utf-8")).get("weight_map", {}).values()
        return [path for path in (folder / shard for shard in sorted(set(shards))) if path.is_file()]
    found = [path for path in sorted(folder.rglob("*")) if path.suffix in WEIGHTS and path.is_file()]
    variables = [path for path in folder.rglob("variables.data-*") if path.is_file()]  # of a SavedModel
    if not found and not variables:
        raise InputError(
            f"{str(folder)!r} has no file of weights ({', '.join(WEIGHTS)}); give the model's folder, its file, or size="
        )
    return found + variables


def digest(texts: Sequence[str], labels: np.ndarray, label_names: Sequence[str]) -> str:
    """SHA-256 of the data: two records are compared example by example when it is the same."""
    content = json.dumps([list(texts), labels.tolist(), list(label_names)], ensure_ascii=True)
    return hashlib.sha256(content.encode()).hexdigest()


def some(names: Sequence[str], most: int = 5) -> str:
    """The first few of many names, quoted."""
    shown = ", ".join(map(repr, names[:most]))
    return shown + (f" and {len(names) - most} more" if len(names) > most else "")
