"""Benchmark results as records of plain values, and the run file that stores them."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Self

import numpy as np

from duonlp.errors import InputError
from duonlp.training.settings_file import build
from duonlp.util.files import updating, write_text
from duonlp.util.json_text import to_json
from duonlp.util.reading import parse_json

FORMAT = "duonlp benchmark 1"
"""Format of a run file; the number increases when older versions cannot read newer files."""


@dataclass(frozen=True)
class Latency:
    """Milliseconds from a text to its prediction, one text at a time.

    Attributes:
        mean: Mean over all samples.
        std: Population standard deviation of the samples, as ``numpy.std``.
        p50: Median, by linear interpolation like the other percentiles.
        p95: 95th percentile.
        p99: 99th percentile.
        queries: Number of texts.
        repeats: Measurements per text.
        samples: Every measurement: all queries in order, then again for each repeat; None if not stored.
    """

    mean: float
    std: float
    p50: float
    p95: float
    p99: float
    queries: int
    repeats: int = 1
    samples: tuple[float, ...] | None = None

    @classmethod
    def from_seconds(cls, seconds: Sequence[float], repeats: int = 1, keep: bool = True) -> Self:
        """Summarize measurements in seconds, ordered like ``samples``."""
        samples = 1000 * np.asarray(seconds, np.float64)
        p50, p95, p99 = np.percentile(samples, [50, 95, 99]).tolist()
        stored = tuple(np.round(samples, 6).tolist()) if keep else None
        return cls(
            float(samples.mean()), float(samples.std()), p50, p95, p99, samples.size // repeats, repeats, stored
        )  # fmt: skip

    def by_query(self) -> np.ndarray:
        """Return the median of each query's samples, float64 [queries]; empty if samples were not stored."""
        if not self.samples:
            return np.zeros(0)
        return np.median(np.array(self.samples).reshape(self.repeats, self.queries), axis=0)


@dataclass(frozen=True)
class Memory:
    """Resident memory of a process that runs a pipeline, in bytes.

    Attributes:
        peak: Peak after loading and warm-up, including the interpreter and the framework.
        before: Memory with the framework imported and no model loaded; None if unknown.
        alone: Whether the process ran only this model.
        during: "answering", or "process" if the system cannot reset an older peak, such as that of loading.
    """

    peak: int
    before: int | None = None
    alone: bool = False
    during: str = "answering"

    @property
    def growth(self) -> int | None:
        """Memory added by the model: weights, compiled programs and buffers. None if unknown."""
        return None if self.before is None else self.peak - self.before


@dataclass(frozen=True)
class BenchmarkRecord:
    """Results of one model, and the conditions of the measurement.

    Attributes:
        name: Name of the model in tables.
        run: Id shared by all records measured in turns with each other.
        date: UTC, ISO 8601.
        data: SHA-256 of the texts, labels and label names.
        examples: Number of examples.
        scores: Shares from 0 to 1 by name: accuracy, and with an out-of-scope label in_scope_accuracy and
            out_of_scope_recall.
        correct: One bit per example, whether the prediction was correct; see :func:`pack_flags`.
        latency: Latency of single texts.
        throughput: Examples per second in batches of batch_size; None if the pipeline takes one text at a time.
        batch_size: Texts per batch.
        size: Bytes of the model on disk; None if unknown.
        parameters: Number of parameters; None if unknown.
        memory: Resident memory; None if unknown.
        framework: "tf", "jax" or another; None if unknown.
        model: Location of the model; None if unknown.
        out_of_scope: Name of the out-of-scope label, or None.
        threshold: Score below which a prediction counts as out of scope, or None.
        out_of_scope_examples: One bit per example, whether its label is the out-of-scope one; None without one.
        quantization: Scheme of a quantized model of this library, such as "int8"; None if it is not one.
        machine: See :func:`duonlp.util.machine`.
        settings: Settings of the command that measured.
    """

    name: str
    run: str
    date: str
    data: str
    examples: int
    scores: dict[str, float]
    correct: str
    latency: Latency
    throughput: float | None = None
    batch_size: int | None = None
    size: int | None = None
    parameters: int | None = None
    memory: Memory | None = None
    framework: str | None = None
    model: str | None = None
    out_of_scope: str | None = None
    threshold: float | None = None
    out_of_scope_examples: str | None = None
    quantization: str | None = None
    machine: dict[str, Any] = field(default_factory=dict)
    settings: dict[str, Any] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """Return the record as a dict for JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """Restore a record from the dict of :meth:`to_dict`.

        Raises:
            InputError: A key is missing or unknown, or a value has the wrong type.
        """
        if not isinstance(values, Mapping):
            raise InputError(f"invalid benchmark record {values!r}: expected an object; measure it again")
        record = build(cls, values, "a benchmark's record")
        machine = record.machine
        numbers = {f"scores.{name}": score for name, score in record.scores.items()}
        numbers |= {f"machine.{key}": machine[key] for key in ("cores", "load") if machine.get(key) is not None}
        wrong = [(path, value, "a number") for path, value in numbers.items() if type(value) not in (int, float)]
        tables = {key: machine[key] for key in ("versions", "environment") if key in machine}
        wrong += [
            (f"machine.{key}", value, "a table") for key, value in tables.items() if not isinstance(value, Mapping)
        ]
        for path, value, kind in wrong:
            raise InputError(
                f"invalid record of {record.name!r}: {path} is {value!r}, expected {kind}; measure it again"
            )
        samples = record.latency.samples
        if samples is not None and len(samples) != record.latency.queries * record.latency.repeats:
            raise InputError(
                f"invalid record of {record.name!r}: {len(samples)} samples for {record.latency.queries} queries with "
                f"{record.latency.repeats} repeats; measure it again"
            )
        return record

    def correct_examples(self) -> np.ndarray:
        """Return which predictions were correct, bool [examples]."""
        return unpack_flags(self.correct, self.examples)

    def are_out_of_scope(self) -> np.ndarray | None:
        """Return which examples are out of scope, bool [examples], or None without an out-of-scope label."""
        return None if self.out_of_scope_examples is None else unpack_flags(self.out_of_scope_examples, self.examples)


def pack_flags(flags: np.ndarray) -> str:
    """Pack bool [n] into a hexadecimal string, eight flags per byte, most significant bit first, zero-padded."""
    return np.packbits(np.asarray(flags, bool)).tobytes().hex()


def unpack_flags(text: str, count: int) -> np.ndarray:
    """Unpack a string of :func:`pack_flags` into bool [count].

    Raises:
        InputError: The string is not hexadecimal, or does not hold `count` flags.
    """
    try:
        stored = np.frombuffer(bytes.fromhex(text), np.uint8)
    except ValueError:
        raise InputError(f"{text[:20]!r} is not hexadecimal; measure the record again") from None
    if stored.size != -(-count // 8):
        raise InputError(
            f"{stored.size} bytes do not hold one bit for each of {count} examples; measure the record again"
        )
    return np.unpackbits(stored, count=count).astype(bool)


def read_records(file: str | os.PathLike) -> list[BenchmarkRecord]:
    """Read the records of a run file, in order.

    Raises:
        InputError: The file cannot be read, is not a run file, or has no record.
    """
    try:
        content = parse_json(Path(file).read_bytes(), unique=True)
    except OSError as error:
        raise InputError(f"cannot read {str(file)!r}: {error.strerror}; give a benchmark's run file") from None
    except ValueError as error:
        raise InputError(f"{str(file)!r} is not JSON ({error}); give a benchmark's run file") from None
    if not isinstance(content, dict) or content.get("format") != FORMAT or not isinstance(content.get("records"), list):
        raise InputError(f'{str(file)!r} is not a benchmark run file: its "format" is not {FORMAT!r}')
    try:
        records = [BenchmarkRecord.from_dict(values) for values in content["records"]]
    except InputError as error:
        raise InputError(f"{str(file)!r}: {error}") from error
    if not records:
        raise InputError(f"{str(file)!r} has no record; measure a model into it with --output")
    return records


def write_records(file: str | os.PathLike, records: Sequence[BenchmarkRecord]) -> list[BenchmarkRecord]:
    """Add records to a run file, replacing records of the same name, and write it atomically.

    Returns:
        All records in the file.

    Raises:
        InputError: Two records have one name, the file exists but is not a run file, or its folder does not exist.
        StorageError: The file cannot be written.
    """
    file, names = Path(file), [record.name for record in records]
    if repeated := [name for name in dict.fromkeys(names) if names.count(name) > 1]:
        raise InputError(f"two records are named {repeated[0]!r}; give each a unique name")
    check_run_file(file)
    with updating(file):  # so that no record of another process is lost
        stored = {record.name: record for record in (read_records(file) if file.exists() else ())}
        stored |= {record.name: record for record in records}
        content = {"format": FORMAT, "records": [record.to_dict() for record in stored.values()]}
        write_text(file, to_json(content, indent=1) + "\n")
    return list(stored.values())


def check_run_file(file: Path) -> None:
    """Raise InputError if records cannot be written to the file; call it before measuring."""
    if file.is_dir():
        raise InputError(f"{str(file)!r} is a folder; give a file in it, such as run.json")
    if not file.parent.is_dir():
        raise InputError(f"the folder {str(file.parent)!r} of {file.name!r} does not exist; create it first")
    if file.exists():
        read_records(file)
