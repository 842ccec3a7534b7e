"""Evaluate code models on problems in HumanEval's format: complete, truncate, run against the tests, estimate pass@k.

Follows Chen et al. 2021 (arXiv:2107.03374), https://github.com/openai/human-eval.
"""

import gzip
import hashlib
import json
import re
import sys
import threading
import zlib
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from duonlp.errors import InputError
from duonlp.evaluation.pass_rate import pass_at_k
from duonlp.evaluation.sandbox import UNSAFE, Result, check_solution, printable, require_isolation
from duonlp.util.files import locked_file, storage_errors
from duonlp.util.reading import parse_json

STOP_STRINGS = ("\nclass", "\ndef", "\n#", "\n@", "\nprint", "\nif")
"""Starts of a new top-level block after a function's body, as in CodeParrot's evaluation."""

BLOCK_END = re.compile("|".join(map(re.escape, STOP_STRINGS)))

DANGER = (
    "this evaluation executes untrusted, model-written code. The kernel isolates it (see docs/code-evaluation.md), "
    "but a sandbox is weaker than a virtual machine: use a machine without valuable data"
)
UNSAFE_DANGER = f"this evaluation executes untrusted, model-written code, which is not isolated: {UNSAFE}"

FIELDS = ("task_id", "prompt", "entry_point", "test")


@dataclass(frozen=True)
class Problem:
    """A programming problem.

    Attributes:
        task_id: Unique name.
        prompt: Imports, function header and docstring, for a model to complete.
        entry_point: Name of the function.
        test: Source code that defines `check(candidate)`.
        canonical_solution: A function body that passes, or "".
    """

    task_id: str
    prompt: str
    entry_point: str
    test: str
    canonical_solution: str = ""

    def program(self, completion: str) -> str:
        """Return a program that runs the tests on a completion in the same process, where the completion could reach them."""
        return f"{self.prompt}{completion}\n\n{self.test}\n\ncheck({self.entry_point})\n"


def check_problem(problem: Problem, completion: str, **options: Any) -> Result:
    """Judge a completion by the problem's tests, which run in another process, see `check_solution`.

    Args:
        problem: The problem, whose prompt and tests are trusted.
        completion: Continuation of its prompt, untrusted.
        **options: seconds, memory, file_size, output_size, namespaces, unsafe.

    Raises:
        InputError: An option is invalid, or the kernel cannot isolate programs and `unsafe` is not True.
    """
    test = f"{problem.test}\n\ncheck({problem.entry_point})\n"
    return check_solution(problem.prompt + completion, test, [problem.entry_point], prompt=problem.prompt, **options)


def read_problems(file: str | Path) -> list[Problem]:
    """Read problems in HumanEval's format: JSON Lines, gzipped if the name ends in .gz.

    Raises:
        InputError: The file cannot be read or has no problems, a line is not a valid problem, or a task_id is repeated.
    """
    path = Path(file)
    try:
        with gzip.open(path, "rt", encoding="utf-8") if path.suffix == ".gz" else path.open(encoding="utf-8") as lines:
            content = lines.read()
    except (OSError, EOFError, UnicodeDecodeError, zlib.error) as error:
        reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
        raise InputError(f"cannot read the problems {str(path)!r}: {reason}; give a .jsonl or .jsonl.gz file") from None
    problems: dict[str, Problem] = {}
    for number, line in enumerate(content.split("\n"), 1):
        if not line.strip():
            continue
        try:
            row = parse_json(line)
            if not isinstance(row, Mapping):
                raise ValueError("it is not an object")
            invalid = [name for name in FIELDS if not isinstance(row.get(name), str)]
            if invalid:
                raise ValueError(f"it has no text for {', '.join(invalid)}")
            if not isinstance(row.get("canonical_solution") or "", str):
                raise ValueError("its canonical_solution is not a text")
            if not row["entry_point"].isidentifier():
                raise ValueError(f"its entry_point {row['entry_point']!r} is not an identifier")
            if row["task_id"] in problems:
                raise ValueError(f"its task_id {row['task_id']!r} was used before")
        except ValueError as error:
            raise InputError(
                f"{path.name}, line {number} is not a problem in HumanEval's format: {error}; fix or remove it"
            ) from None
        solution = row.get("canonical_solution") or ""
        problems[row["task_id"]] = Problem(*(row[name] for name in FIELDS), canonical_solution=solution)
    if not problems:
        raise InputError(f"{str(path)!r} contains no problems; give a file in HumanEval's format")
    return list(problems.values())


def cut_at_first_block(prompt: str, completion: str) -> str:
    """Truncate a completion where a new top-level block begins, which leaves the function's body; strip the end.

    Args:
        prompt: Prompt of the completion. If it ends with a line break, the completion itself begins at the left margin.
        completion: Completion by a model.
    """
    margin = "\n" if prompt.endswith("\n") else ""
    return BLOCK_END.split(margin + completion, maxsplit=1)[0].removeprefix(margin).rstrip()


def evaluate_problems(
    problems: Sequence[Problem],
    complete: Callable[[list[str], int], Sequence[Sequence[str]]],
    k: Sequence[int] = (1, 10, 100),
    *,
    samples: int | None = None,
    workers: int = 1,
    prompts_at_once: int = 1,
    cut: Callable[[str, str], str] = cut_at_first_block,
    record: str | Path | None = None,
    label: str = "",
    allow_code_execution: bool = False,
    progress: Callable[[int, int], None] | None = None,
    **limits: Any,
) -> dict[str, Any]:
    """Sample completions of every problem, run them in the sandbox, and estimate pass@k.

    Args:
        problems: Problems such as those from `read_problems`.
        complete: `complete(prompts, n)` returns n completions (without the prompt) per prompt. It is called from this
            thread, while the programs of earlier prompts run.
        k: Values of k to estimate pass@k for.
        samples: Completions per problem; defaults to the largest k.
        workers: Number of programs to run concurrently.
        prompts_at_once: Number of prompts per call of `complete`.
        cut: `cut(prompt, completion)` returns the part of a completion to run.
        record: JSON Lines file with one row per problem, written as soon as the problem is done. Problems that it already
            contains, with the same number of samples, are not run again. None writes no file.
        label: Identifies the completions (the model and the sampling options); a record with another label is rejected.
        allow_code_execution: Must be True to run anything; a warning is printed.
        progress: Called with (problems done, number of problems) after each problem.
        **limits: Options of `check_solution`: seconds, memory, file_size, output_size, namespaces, unsafe.

    Returns:
        {"pass@k": {"pass@1": ..., ...}, "totals": {"problems", "solved", "samples", "passed", "statuses"},
        "protection": [...], "problems": [{"task_id", "samples", "passed", "results": [{"completion", "status", "error",
        "seconds", ...}]}]}

    Raises:
        InputError: allow_code_execution is not True, a k exceeds samples, `complete` returned the wrong number of
            completions, the record is invalid or being written by another process or thread, or the kernel cannot isolate
            programs and `unsafe` is not True.
        StorageError: The record cannot be written.
    """
    if not allow_code_execution:
        raise InputError(f"{DANGER}; pass allow_code_execution=True (--allow-code-execution) to accept the risk")
    for name, value in (("workers", workers), ("prompts_at_once", prompts_at_once), *(("k", value) for value in k)):
        if not isinstance(value, int) or value < 1:
            raise InputError(f"{name} is {value!r}; it must be a positive integer")
    if not problems or not k:
        raise InputError(f"there are {len(problems)} problems and {len(k)} values of k; give at least one of each")
    samples = max(k) if samples is None else samples
    if samples < max(k):
        raise InputError(
            f"samples is {samples}, but the largest k is {max(k)}; draw at least {max(k)} samples or lower k"
        )
    isolated = require_isolation(limits.get("namespaces", True), limits.get("unsafe", False))
    print(f"WARNING: {DANGER if isolated else UNSAFE_DANGER}.", file=sys.stderr, flush=True)
    lock, count = threading.Lock(), 0

    def finish(problem: Problem, completions: Sequence[str], futures: Sequence[Future[Result]]) -> None:
        nonlocal count
        rows[problem.task_id] = row = _row(problem, completions, [future.result() for future in futures], label)
        count += 1
        if record is not None:
            with lock, storage_errors(record), Path(record).open("a", encoding="utf-8") as file:
                file.write(json.dumps(row) + "\n")
        if progress is not None:
            progress(count, len(problems))

    pending: list[tuple[Problem, list[str], list[Future[Result]]]] = []
    with nullcontext() if record is None else locked_file(record), ThreadPoolExecutor(workers) as pool:
        done = _read_record(record, samples, label) if record is not None else {}
        rows = {
            p.task_id: done[p.task_id] for p in problems if _fingerprint(p) == done.get(p.task_id, {}).get("problem")
        }
        remaining = [problem for problem in problems if problem.task_id not in rows]
        count = len(rows)
        try:
            for start in range(0, len(remaining), prompts_at_once):
                batch = remaining[start : start + prompts_at_once]
                texts = complete([problem.prompt for problem in batch], samples)
                _check_completions(texts, len(batch), samples)
                for problem, completions in zip(batch, texts, strict=True):
                    completions = [cut(problem.prompt, completion) for completion in completions]
                    futures = [pool.submit(check_problem, problem, completion, **limits) for completion in completions]
                    pending.append((problem, completions, futures))
                while pending and all(future.done() for future in pending[0][2]):
                    finish(*pending.pop(0))
            while pending:
                finish(*pending.pop(0))
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    return summarize([rows[problem.task_id] for problem in problems], k)


def summarize(rows: Sequence[Mapping[str, Any]], k: Sequence[int]) -> dict[str, Any]:
    """Return the report of `evaluate_problems` from the rows of its problems.

    Args:
        rows: Rows of the problems, as in the "problems" of the report.
        k: Values of k to estimate pass@k for.
    """
    n, c = [row["samples"] for row in rows], [row["passed"] for row in rows]
    statuses = Counter(result["status"] for row in rows for result in row["results"])
    protections = {tuple(result["protection"]) for row in rows for result in row["results"]}
    return {
        "pass@k": {f"pass@{value}": float(np.mean(pass_at_k(n, c, value))) for value in k},
        "totals": {
            "problems": len(rows),
            "solved": sum(passed > 0 for passed in c),
            "samples": sum(n),
            "passed": sum(c),
            "statuses": dict(statuses.most_common()),
        },
        "protection": sorted(set.intersection(*map(set, protections))) if protections else [],
        "problems": list(rows),
    }


def _fingerprint(problem: Problem) -> str:
    """Return a hash that identifies the problem in a record."""
    return hashlib.sha256(json.dumps([problem.prompt, problem.entry_point, problem.test]).encode()).hexdigest()[:16]


def _row(problem: Problem, completions: Sequence[str], results: Sequence[Result], label: str) -> dict[str, Any]:
    return {
        "task_id": problem.task_id,
        "problem": _fingerprint(problem),
        "label": label,
        "samples": len(results),
        "passed": sum(result.passed for result in results),
        "results": [
            {
                "completion": printable(text),
                **{name: value for name, value in result.to_dict().items() if name != "output"},
            }
            for text, result in zip(completions, results, strict=True)
        ],
    }


def _check_completions(texts: Any, prompts: int, samples: int) -> None:
    counts = [len(completions) if isinstance(completions, (list, tuple)) else 0 for completions in texts]
    if counts != [samples] * prompts:
        raise InputError(
            f"complete returned {counts} completions for {prompts} prompts; it must return a list of {samples} for each"
        )


def _read_record(record: str | Path, samples: int, label: str) -> dict[str, dict[str, Any]]:
    """Return {task_id: row} of the rows with this number of samples. An incomplete last line, left by a crash, is removed."""
    path = Path(record)
    if not path.exists():
        return {}
    content = path.read_bytes()
    complete_lines = content[: content.rfind(b"\n") + 1]
    if complete_lines != content:
        with path.open("r+b") as file:
            file.truncate(len(complete_lines))
    rows = {}
    for number, line in enumerate(complete_lines.splitlines(), 1):
        try:
            row = parse_json(line)
            rows[row["task_id"]] = row
            row_label = row["label"]
        except (ValueError, KeyError, TypeError):
            raise InputError(
                f"{path}, line {number} is not the result of a problem; use another record, or none"
            ) from None
        if row_label != label:
            raise InputError(f"{path} is a record of {row_label!r}, not of {label!r}; use another record, or none")
    return {name: row for name, row in rows.items() if row.get("samples") == samples}
