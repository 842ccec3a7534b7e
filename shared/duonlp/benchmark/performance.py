"""Measure accuracy, size, latency, throughput and memory of a text classifier.

Follows the PerformanceBenchmark of Tunstall, von Werra and Wolf, "Natural Language Processing with Transformers" (2022),
chapter 8, for any pipeline: of either framework, of Transformers, quantized, ONNX, or a plain function.
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

from duonlp.benchmark.memory import watch_memory
from duonlp.benchmark.record import BenchmarkRecord, Latency, Memory, pack_flags
from duonlp.benchmark.timing import time_batches, time_queries
from duonlp.data.labelled.texts import LabelledTexts
from duonlp.errors import InputError
from duonlp.metrics.classification import classification_scores, label_id
from duonlp.parameters import count_parameters
from duonlp.pipelines.pipeline import Pipeline
from duonlp.quantization import scheme_of
from duonlp.tasks.base import check_int
from duonlp.util.console import Progress
from duonlp.util.machine_info import machine
from duonlp.util.reading import read_json_object

Text = str | dict[str, str]
"""A text, or a pair of texts under the names of PAIR."""

PAIR = "text", "text_pair"
"""Names of the two texts of a pair in a pipeline's input."""

WEIGHTS = (".safetensors", ".onnx", ".onnx_data", ".data", ".tflite", ".keras", ".h5", ".msgpack", ".pb")
"""Suffixes of weight files, for folders without a model.safetensors."""


class PerformanceBenchmark:
    """Measures one pipeline on labeled texts.

    Args:
        pipeline: Maps a text to ``{"label": ..., "score": ...}`` or to a list of them, of which the highest score
            counts; and a list of texts to a list of such results.
        texts: Texts with one label each (a LabelledTexts), with the pipeline's label names.
        name: Name of the model in tables and plots.
        folder: Folder or file of the model, for its size on disk.
        size: Bytes on disk, without a folder.
        framework: "tf" or "jax", for the record.
        model: Location of the model, for the record.
        out_of_scope: Name of the label for texts that belong to no other label.
        threshold: Predictions with a lower score count as the out-of-scope label.
        queries: Number of texts to time one by one, spread evenly over all; None for all.
        repeats: Timed calls per query.
        warm_up: Untimed calls, in addition to one per query, which compiles every shape.
        batch_size: Texts per batch for accuracy and throughput; None if the pipeline takes one text at a time.
        samples: Store every measurement in the record, which comparing two runs requires.
        clock: Returns seconds since an arbitrary start.

    Raises:
        InputError: There is no text, a text has several labels, the out-of-scope label is unknown, a threshold has no
            out-of-scope label, or the pipeline cannot predict a label of the texts.
    """

    def __init__(
        self,
        pipeline: Callable[..., Any],
        texts: LabelledTexts,
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
            raise InputError(f"pipeline is a {type(pipeline).__name__}; expected a callable that takes a text")
        if not isinstance(name, str) or not name.strip():
            raise InputError(f"name is {name!r}; expected a non-empty string, for tables and plots")
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
            raise InputError(f"threshold is {threshold}, but there is no out-of-scope label; name it with out_of_scope")
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
            raise InputError("there are no texts to measure with; give at least one, with its label")
        if self.labels.shape != (len(self.texts),) or self.labels.dtype.kind not in "iu":
            raise InputError(
                f"labels are {self.labels.dtype} {list(self.labels.shape)} for {len(self.texts)} texts; "
                "a benchmark needs one integer label per text"
            )
        wrong = self.labels[(self.labels < 0) | (self.labels >= len(self.label_names))]
        if wrong.size:
            raise InputError(
                f"label {int(wrong[0])} is out of range for {len(self.label_names)} label names; number labels from 0"
            )

    def _check_labels(self) -> None:
        """Raise InputError if the pipeline declares its labels and one of the texts' labels is missing."""
        model_labels = getattr(getattr(self.pipeline, "config", None), "labels", None)
        if not model_labels:
            return
        used = [self.label_names[i] for i in np.unique(self.labels)]
        optional = None if self.threshold is None else self.out_of_scope
        missing = [name for name in used if name not in model_labels and name != optional]
        if missing:
            raise InputError(
                f"{self.name!r} has no label {quoted(missing)}, which the texts have; its labels are "
                f"{quoted(list(model_labels))}; use texts with the model's labels, a model trained on theirs, or a threshold "
                "if it is the out-of-scope label"
            )

    def run(self, *, progress: bool | None = None) -> BenchmarkRecord:
        """Run all measurements and return a record."""
        return benchmark_together([self], progress=progress)[0]

    def compute_accuracy(self, advance: Callable[[int], None] | None = None) -> tuple[dict[str, float], np.ndarray]:
        """Classify every text and score the predictions.

        Args:
            advance: Called with the number of texts classified since the last call.

        Returns:
            Scores from 0 to 1 (accuracy, macro_f1, and with an out-of-scope label its scores), and which predictions
            are correct, bool [n].

        Raises:
            InputError: A result is not a label with a score, or its label is unknown.
        """
        answers = []
        for part in self.parts(self.texts, 20 * (self.batch_size or 1)):
            answers += self.answers(part)
            if advance is not None:
                advance(len(part))
        predicted = np.array([self.label_of(label, score) for label, score in answers], np.int64)
        outside = None if self.out_of_scope is None else self.label_names.index(self.out_of_scope)
        # score the predictions as one-hot logits; labels that no text has share one extra class
        certain = np.eye(len(self.label_names) + 1)[predicted]
        scores = classification_scores(certain, self.labels, outside)
        del scores["loss"]
        return scores, predicted == self.labels

    def answers(self, texts: Sequence[Text]) -> list[tuple[str, float]]:
        """Return (label, score) of each text, in batches unless the pipeline takes one text at a time."""
        if self.batch_size is None:
            results = [self.pipeline(text) for text in texts]
        elif isinstance(self.pipeline, Pipeline):  # which sorts by length
            results = self.pipeline(list(texts), batch_size=self.batch_size, progress=False)
        else:
            results = [result for part in self.parts(texts, self.batch_size) for result in self.pipeline(part)]
        if len(results) != len(texts):
            raise InputError(
                f"{self.name!r} returned {len(results)} results for {len(texts)} texts, expected one per text; "
                "set batch_size=None if it takes one text at a time"
            )
        return [best_answer(result, self.name) for result in results]

    @staticmethod
    def parts(texts: Sequence[Text], size: int) -> Iterator[list[Text]]:
        """Yield the texts in lists of at most `size`."""
        for start in range(0, len(texts), size):
            yield list(texts[start : start + size])

    def label_of(self, label: str, score: float) -> int:
        """Return the id of a predicted label, applying the threshold; -1 for a label of the model that no text has.

        Raises:
            InputError: Neither the texts nor the pipeline's configuration know the label.
        """
        if self.threshold is not None and self.out_of_scope is not None and score < self.threshold:
            label = self.out_of_scope
        if label in self.label_names:
            return self.label_names.index(label)
        if label in (getattr(getattr(self.pipeline, "config", None), "labels", None) or ()):
            return -1  # the model has more labels than these texts: a wrong prediction
        raise InputError(
            f"{self.name!r} predicts {label!r}, which is not among the labels of the texts ({quoted(self.label_names)}); "
            "use texts with the model's label names"
        )

    def compute_size(self) -> dict[str, int | None]:
        """Return {"size": bytes on disk, "parameters": their number}, with None for unknown values.

        Raises:
            InputError: The folder has no weight file.
        """
        size = self.size if self.folder is None else sum(path.stat().st_size for path in model_files(self.folder))
        parameters = None
        if isinstance(self.pipeline, Pipeline):
            parameters = count_parameters(self.pipeline.config, self.pipeline.task.head)
        return {"size": size, "parameters": parameters}

    def warm(self) -> None:
        """Run the untimed calls: every query, which compiles every shape, then some more."""
        for text in self.queries:
            self.pipeline(text)
        for i in range(self.warm_up):
            self.pipeline(self.queries[i % len(self.queries)])
        if self.batch_size is not None:
            self.answers(self.queries)

    def time_pipeline(self) -> Latency:
        """Measure the latency of single texts, after warm-up."""
        self.warm()
        return time_queries([self])[0]

    def time_batches(self) -> float | None:
        """Measure examples per second in batches, after warm-up; None if the pipeline takes one text at a time."""
        if self.batch_size is None:
            return None
        self.warm()
        return time_batches([self])[0]


def benchmark_together(
    benchmarks: Sequence[PerformanceBenchmark],
    *,
    progress: bool | None = None,
) -> list[BenchmarkRecord]:
    """Run several benchmarks over the same texts, timing their queries in turns, so that drift of the machine affects all.

    All run in this process, so they should use one framework: the thread pools of two would interfere. The record's
    memory is that of this process, and is omitted with several benchmarks (see :func:`memory_alone` for one process each).

    Args:
        benchmarks: Benchmarks with distinct names over the same texts and queries.
        progress: Show a progress bar; None shows one on a terminal if the work takes a while.

    Raises:
        InputError: Two benchmarks have the same name, or different texts or queries, or as :class:`PerformanceBenchmark`.
    """
    check_alike(benchmarks)
    run, date = uuid.uuid4().hex[:12], datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    memory: list[Memory] = []
    total = sum(len(benchmark.texts) + 2 * len(benchmark.queries) for benchmark in benchmarks)
    with Progress(total, progress, "measuring") as bar:
        sizes = [benchmark.compute_size() for benchmark in benchmarks]
        scores = [benchmark.compute_accuracy(bar.advance) for benchmark in benchmarks]
        for benchmark in benchmarks:
            benchmark.warm()
            bar.advance(2 * len(benchmark.queries))
    conditions = machine()  # with the load just before timing; the progress bar, drawn by a thread, ends here
    with watch_memory(memory):
        latencies, throughputs = time_queries(benchmarks), time_batches(benchmarks)
    records = []
    for i, benchmark in enumerate(benchmarks):
        outside = (
            None
            if benchmark.out_of_scope is None
            else benchmark.labels == benchmark.label_names.index(benchmark.out_of_scope)
        )
        records.append(
            BenchmarkRecord(
                benchmark.name,
                run,
                date,
                benchmark.data,
                len(benchmark.texts),
                scores[i][0],
                pack_flags(scores[i][1]),
                latencies[i],
                throughput=throughputs[i],
                batch_size=benchmark.batch_size,
                size=sizes[i]["size"],
                parameters=sizes[i]["parameters"],
                memory=memory[0] if memory and len(benchmarks) == 1 else None,
                framework=benchmark.framework,
                model=benchmark.model or (None if benchmark.folder is None else str(benchmark.folder)),
                out_of_scope=benchmark.out_of_scope,
                threshold=benchmark.threshold,
                out_of_scope_examples=None if outside is None else pack_flags(outside),
                quantization=scheme_of(getattr(getattr(benchmark.pipeline, "config", None), "quantization", None)),
                machine=conditions,
            )
        )
    return records


def check_alike(benchmarks: Sequence[PerformanceBenchmark]) -> None:
    """Raise InputError if benchmarks cannot be measured in turns."""
    if not benchmarks:
        raise InputError("there are no benchmarks to run; give at least one")
    names, first = [benchmark.name for benchmark in benchmarks], benchmarks[0]
    for benchmark in benchmarks:
        if names.count(benchmark.name) > 1:
            raise InputError(f"two models are named {benchmark.name!r}; give each a different name")
        if (benchmark.data, benchmark.queries, benchmark.repeats) != (first.data, first.queries, first.repeats):
            raise InputError(
                f"{benchmark.name!r} and {first.name!r} have different texts, queries or repeats; models measured in turns need "
                "the same queries"
            )


def best_answer(result: Any, name: str) -> tuple[str, float]:
    """Return the label with the highest score, and the score.

    Raises:
        InputError: The result is neither a label with a score nor a list of them.
    """
    answers = [result] if isinstance(result, Mapping) else result
    valid = isinstance(answers, Sequence) and answers and not isinstance(answers, str)
    if not valid or not all(isinstance(answer, Mapping) and {"label", "score"} <= set(answer) for answer in answers):
        raise InputError(
            f'{name!r} returned {repr(result)[:80]}; a pipeline must return {{"label": ..., "score": ...}} for a text, or a '
            "list of them, and a list of results for a list of texts (batch_size=None passes one text at a time)"
        )
    best = max(answers, key=lambda answer: answer["score"])
    return best["label"], float(best["score"])


def model_files(folder: Path) -> list[Path]:
    """Return a model's weight files: those of a checkpoint, or every weight file in the folder, or the file itself.

    Raises:
        InputError: There is none.
    """
    if folder.is_file():
        beside = [folder.with_name(folder.name + ending) for ending in ("_data", ".data")]
        return [folder, *(path for path in beside if path.is_file())]
    index, single = folder / "model.safetensors.index.json", folder / "model.safetensors"
    if single.is_file():
        return [single]
    if index.is_file():
        shards = _shards(read_json_object(index, advice="save the model again"))
        return [path for path in (folder / shard for shard in shards) if path.is_file()]
    files = [path for path in sorted(folder.rglob("*")) if path.suffix in WEIGHTS and path.is_file()]
    variables = [path for path in folder.rglob("variables.data-*") if path.is_file()]  # of a SavedModel
    if not files and not variables:
        raise InputError(
            f"{str(folder)!r} has no weight file ({', '.join(WEIGHTS)}); give the model's folder, its file, or size="
        )
    return files + variables


def digest(texts: Sequence[Text], labels: np.ndarray, label_names: Sequence[str]) -> str:
    """Return the SHA-256 of the data, by which records are known to be comparable example by example."""
    content = json.dumps([list(texts), labels.tolist(), list(label_names)], ensure_ascii=True)
    return hashlib.sha256(content.encode()).hexdigest()


def quoted(names: Sequence[str], most: int = 5) -> str:
    """Return the first few names, quoted, and the number of the others."""
    shown = ", ".join(map(repr, names[:most]))
    return shown + (f" and {len(names) - most} more" if len(names) > most else "")


def _shards(index: dict[str, Any]) -> list[str]:
    """Return the file names of an index of shards; names of other folders do not count."""
    names = index.get("weight_map")
    values = names.values() if isinstance(names, dict) else ()
    return sorted({name for name in values if isinstance(name, str) and Path(name).name == name})
