"""What a benchmark measured, as a record of plain values, and the run file that keeps several of them."""

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Self

import numpy as np

from duonlp.errors import InputError
from duonlp.training.settings_file import build
from duonlp.util.files import write_text

FORMAT = "duonlp benchmark 1"
"""First key of a run file; the number grows when an older program could not read a newer file."""


@dataclass(frozen=True)
class Latency:
    """Milliseconds from a text to its answer, one text at a time, over real queries.

    mean, std: over all samples; std is theirs, not that of the mean (divided by n, as ``numpy.std``).
    p50, p95, p99: percentiles, linear between samples.
    queries, repeats: how many texts, and how often each.
    samples: every measurement, all queries in order, then all of them again for each repeat; None where not kept.
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
        """From measurements in seconds, ordered as ``samples``."""
        samples = 1000 * np.asarray(seconds, np.float64)
        p50, p95, p99 = np.percentile(samples, [50, 95, 99]).tolist()
        kept = tuple(np.round(samples, 6).tolist()) if keep else None
        return cls(
            float(samples.mean()), float(samples.std()), p50, p95, p99, samples.size // repeats, repeats, kept
        )  # fmt: skip

    def by_query(self) -> np.ndarray:
        """The median of each query's samples, float64 [queries]; empty where samples were not kept."""
        if not self.samples:
            return np.zeros(0)
        return np.median(np.array(self.samples).reshape(self.repeats, self.queries), axis=0)


@dataclass(frozen=True)
class Memory:
    """Resident memory of a process that answered, in bytes.

    peak: the most there was, with the interpreter and the framework, while it answered: after loading and warm-up.
    before: what there was with the framework imported and no model loaded; the rest is the model's doing. None: not known.
    alone: whether the process was for this model alone.
    during: "answering", or "process" where the system cannot forget an older peak, such as that of loading.
    """

    peak: int
    before: int | None = None
    alone: bool = False
    during: str = "answering"

    @property
    def growth(self) -> int | None:
        """Bytes that the model added: weights, compiled programs, what it computes with."""
        return None if self.before is None else self.peak - self.before


@dataclass(frozen=True)
class BenchmarkRecord:
    """One model's figures, and what they depend on.

    name: of the model in tables. run: the same for all records measured in turns with each other. date: UTC, ISO 8601.
    framework, model: "tf", "jax" or another; where the model was. None: not known.
    data: SHA-256 of the texts, labels and label names. examples: how many of them.
    scores: shares from 0 to 1 by name: accuracy, and with an out-of-scope label in_scope_accuracy and out_of_scope_recall.
    out_of_scope, threshold: that label, and the score below which an answer counts as it; None for neither.
    correct: for each example a bit, whether it was answered right, packed in bytes, big-endian, as hexadecimal text.
    out_of_scope_examples: the same, whether its label is the out-of-scope one; None where there is none.
    throughput: examples a second in batches of batch_size; None where the pipeline takes one text at a time.
    size, parameters: bytes of the model on disk, and its number of weights; None: not known.
    machine: as duonlp.util.machine. settings: of the command that measured.
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
    machine: dict[str, Any] = field(default_factory=dict)
    settings: dict[str, Any] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """The record of which :meth:`to_dict` gave these values.

        Raises:
            InputError: a key that is missing or unknown, or a value of the wrong kind.
        """
        if not isinstance(values, Mapping):
            raise InputError(f"{values!r} is no record, which is a table of what was measured; measure it again")
        record = build(cls, values, "a benchmark's record")
        on = record.machine
        numbers = {f"scores.{name}": score for name, score in record.scores.items()}
        numbers |= {f"machine.{key}": on[key] for key in ("cores", "load") if on.get(key) is not None}
        wrong = [(path, value, "a number") for path, value in numbers.items() if type(value) not in (int, float)]
        tables = {key: on[key] for key in ("versions", "environment") if key in on}
        wrong += [(f"machine.{key}", each, "a table") for key, each in tables.items() if not isinstance(each, Mapping)]
        for path, value, kind in wrong:
            raise InputError(
                f"{path} is {value!r} in the record of {record.name!r}; it must be {kind}, so measure it again"
            )
        samples = record.latency.samples
        if samples is not None and len(samples) != record.latency.queries * record.latency.repeats:
            raise InputError(
                f"the record of {record.name!r} has {len(samples)} samples of {record.latency.queries} queries, "
                f"{record.latency.repeats} times each; measure it again"
            )
        return record

    def correct_examples(self) -> np.ndarray:
        """Which examples were answered right, bool [examples]."""
        return unpacked(self.correct, self.examples)

    def are_out_of_scope(self) -> np.ndarray | None:
        """Which examples are out of scope, bool [examples]; None where there is no such label."""
        return None if self.out_of_scope_examples is None else unpacked(self.out_of_scope_examples, self.examples)


def packed(flags: np.ndarray) -> str:
    """bool [n] as hexadecimal text, eight to a byte, the first one highest; the last byte is filled up with zeros."""
    return np.packbits(np.asarray(flags, bool)).tobytes().hex()


def unpacked(text: str, count: int) -> np.ndarray:
    """What :func:`packed` was given, bool [count].

    Raises:
        InputError: it is not hexadecimal, or not of so many.
    """
    try:
        stored = np.frombuffer(bytes.fromhex(text), np.uint8)
    except ValueError:
        raise InputError(f"{text[:20]!r} is no hexadecimal text; measure the record again") from None
    if stored.size != -(-count // 8):
        raise InputError(
            f"{stored.size} bytes do not hold a bit for each of {count} examples; measure the record again"
        )
    return np.unpackbits(stored, count=count).astype(bool)


def read_records(file: str | os.PathLike) -> list[BenchmarkRecord]:
    """The records of a run file, in their order.

    Raises:
        InputError: it cannot be read, is no run file, or has no record.
    """
    try:
        content = json.loads(Path(file).read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"cannot read {str(file)!r}: {error.strerror}; give a benchmark's run file") from None
    except ValueError as error:
        raise InputError(f"{str(file)!r} is not JSON ({error}); give a benchmark's run file") from None
    if not isinstance(content, dict) or content.get("format") != FORMAT or not isinstance(content.get("records"), list):
        raise InputError(f'{str(file)!r} is no benchmark\'s run file: its "format" is not {FORMAT!r}')
    try:
        records = [BenchmarkRecord.from_dict(each) for each in content["records"]]
    except InputError as error:
        raise InputError(f"{str(file)!r}: {error}") from error
    if not records:
        raise InputError(f"{str(file)!r} has no record; measure a model into it with --output")
    return records


def write_records(file: str | os.PathLike, records: Sequence[BenchmarkRecord]) -> list[BenchmarkRecord]:
    """Puts records into a run file, made if need be; one of a name that is there takes its place, others come after.

    The file is written whole or not at all.

    Returns:
        all records that the file has now.

    Raises:
        InputError: the file is there and no run file, or its folder is not.
    """
    file = Path(file)
    check_run_file(file)
    stored = {record.name: record for record in (read_records(file) if file.exists() else ())}
    stored |= {record.name: record for record in records}
    content = {"format": FORMAT, "records": [record.to_dict() for record in stored.values()]}
    write_text(file, json.dumps(content, ensure_ascii=False, indent=1) + "\n")
    return list(stored.values())


def check_run_file(file: Path) -> None:
    """Raises InputError for a file that no record can be written to; to be called before anything is measured."""
    if file.is_dir():
        raise InputError(f"{str(file)!r} is a folder; give a file in it, such as run.json")
    if not file.parent.is_dir():
        raise InputError(f"the folder {str(file.parent)!r} of {file.name!r} is not there; make it first")
    if file.exists():
        read_records(file)
