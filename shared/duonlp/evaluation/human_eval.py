"""Code models on problems in HumanEval's format: prompts completed, cut, run against their tests, and pass@k.

After Chen et al. 2021 (arXiv:2107.03374), https://github.com/openai/human-eval.
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
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from duonlp.errors import InputError
from duonlp.evaluation.pass_rate import pass_at_k
from duonlp.evaluation.sandbox import Result, check_program

STOP_STRINGS = ("\nclass", "\ndef", "\n#", "\n@", "\nprint", "\nif")
"""What begins at the left margin after a function's body, as in CodeParrot's evaluation."""

BLOCK_END = re.compile("|".join(map(re.escape, STOP_STRINGS)))

DANGER = (
    "evaluating code runs programs that a model wrote and nobody has read. They run in a sandbox (see "
    "shared/duonlp/evaluation/sandbox.py), which is no virtual machine: use a machine that holds nothing you could not lose"
)

FIELDS = ("task_id", "prompt", "entry_point", "test")


@dataclass(frozen=True)
class Problem:
    """One problem.

    prompt: imports, the function's head and its docstring, for a model to complete. test: source that defines
    `check(candidate)`. entry_point: the function's name. canonical_solution: a body that passes, "" where none is given.
    """

    task_id: str
    prompt: str
    entry_point: str
    test: str
    canonical_solution: str = ""

    def program(self, completion: str) -> str:
        """The program that runs the checks on a completion."""
        return f"{self.prompt}{completion}\n\n{self.test}\n\ncheck({self.entry_point})\n"


def read_problems(file: str | Path) -> list[Problem]:
    """The problems of a file in HumanEval's format: JSON lines, gzipped when the name ends in .gz.

    Raises:
        InputError: the file cannot be read, a line is no such problem, or a task_id comes twice.
    """
    path = Path(file)
    try:
        with gzip.open(path, "rt", encoding="utf-8") if path.suffix == ".gz" else path.open(encoding="utf-8") as lines:
            content = lines.read()
    except (OSError, EOFError, UnicodeDecodeError, zlib.error) as error:
        why = getattr(error, "strerror", None) or str(error) or type(error).__name__
        raise InputError(f"cannot read the problems {str(path)!r}: {why}; give a .jsonl or .jsonl.gz file") from None
    problems: dict[str, Problem] = {}
    for number, line in enumerate(content.split("\n"), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
            if not isinstance(row, Mapping):
                raise ValueError("it is no object")
            wrong = [name for name in FIELDS if not isinstance(row.get(name), str)]
            if wrong:
                raise ValueError(f"it has no text for {', '.join(wrong)}")
            if not row["entry_point"].isidentifier():
                raise ValueError(f"its entry_point {row['entry_point']!r} is no name")
            if row["task_id"] in problems:
                raise ValueError(f"its task_id {row['task_id']!r} was there before")
        except ValueError as error:
            raise InputError(f"{path.name}, line {number} is not a problem in HumanEval's format: {error}") from None
        solution = row.get("canonical_solution") or ""
        problems[row["task_id"]] = Problem(*(row[name] for name in FIELDS), canonical_solution=solution)
    if not problems:
        raise InputError(f"{str(path)!r} has no problems in it; give a file in HumanEval's format")
    return list(problems.values())


def cut_at_first_block(prompt: str, completion: str) -> str:
    """The completion up to where something new begins at the left margin: the function's body, without white space after.

    Args:
        prompt: what was completed; where it ends with a line break, the completion itself begins at the margin.
        completion: what a model wrote after it.
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
    **limits,
) -> dict[str, Any]:
    """Completes every problem's prompt several times, runs the programs in the sandbox, and estimates pass@k.

    Args:
        problems: as `read_problems` gives them.
        complete: `complete(prompts, n)` gives n completions (without the prompt) for each prompt. Called from this thread,
            while the programs of earlier prompts run.
        k: pass@k for each of these.
        samples: completions of a problem; the largest k by default.
        workers: programs that run at once.
        prompts_at_once: prompts that `complete` is handed together.
        cut: `cut(prompt, completion)` gives what of a completion is run.
        record: a file of JSON lines, one a problem, written as soon as it is done; problems that are in it, with as many
            samples, are not run again. None keeps none.
        label: says what the completions are of (the model and how it draws); a record of another label is refused.
        allow_code_execution: nothing is run unless this is True; a warning is printed then.
        progress: told (problems done, problems) after each.
        limits: of `check_program`: seconds, memory, file_size, output_size, namespaces.

    Returns:
        {"pass@k": {"pass@1": ..., ...}, "totals": {"problems", "samples", "passed", and "statuses"}, "protection": [...],
        "problems": [{"task_id", "samples", "passed", "results": [{"completion", "status", "error", "seconds", ...}]}]}

    Raises:
        InputError: without allow_code_execution, for a k that is larger than samples, for completions that are not as many
            as were asked for, and for a record that cannot be read.
    """
    if not allow_code_execution:
        raise InputError(f"{DANGER}; pass allow_code_execution=True (--allow-code-execution) if you want that")
    for name, value in (("workers", workers), ("prompts_at_once", prompts_at_once), *(("k", each) for each in k)):
        if not isinstance(value, int) or value < 1:
            raise InputError(f"{name} is {value!r}; it must be a positive integer")
    if not problems or not k:
        raise InputError(f"there are {len(problems)} problems and {len(k)} values of k; give at least one of both")
    samples = max(k) if samples is None else samples
    if samples < max(k):
        raise InputError(
            f"samples is {samples}, and k goes up to {max(k)}; draw at least {max(k)}, or leave that k out"
        )
    _warn()
    done = _read_record(record, samples, label) if record is not None else {}
    rows = {p.task_id: done[p.task_id] for p in problems if _key(p) == done.get(p.task_id, {}).get("problem")}
    left = [problem for problem in problems if problem.task_id not in rows]
    lock, count = threading.Lock(), len(rows)

    def finish(problem: Problem, completions: Sequence[str], futures: Sequence[Future]) -> None:
        nonlocal count
        rows[problem.task_id] = row = _row(problem, completions, [each.result() for each in futures], label)
        count += 1
        if record is not None:
            with lock, Path(record).open("a", encoding="utf-8") as file:
                file.write(json.dumps(row) + "\n")
        if progress is not None:
            progress(count, len(problems))

    waiting: list[tuple] = []
    with ThreadPoolExecutor(workers) as pool:
        try:
            for start in range(0, len(left), prompts_at_once):
                batch = left[start : start + prompts_at_once]
                texts = complete([problem.prompt for problem in batch], samples)
                _check_completions(texts, len(batch), samples)
                for problem, completions in zip(batch, texts, strict=True):
                    completions = [cut(problem.prompt, completion) for completion in completions]
                    programs = map(problem.program, completions)
                    waiting.append(
                        (problem, completions, [pool.submit(check_program, each, **limits) for each in programs])
                    )
                while waiting and all(future.done() for future in waiting[0][2]):
                    finish(*waiting.pop(0))
            while waiting:
                finish(*waiting.pop(0))
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    return summarize([rows[problem.task_id] for problem in problems], k)


def summarize(rows: Sequence[Mapping[str, Any]], k: Sequence[int]) -> dict[str, Any]:
    """pass@k and totals of problems' rows, as `evaluate_problems` gives them."""
    n, c = [row["samples"] for row in rows], [row["passed"] for row in rows]
    statuses = Counter(result["status"] for row in rows for result in row["results"])
    protections = {tuple(result["protection"]) for row in rows for result in row["results"]}
    return {
        "pass@k": {f"pass@{each}": float(pass_at_k(n, c, each).mean()) for each in k},
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


def _warn() -> None:
    print(f"WARNING: {DANGER}.", file=sys.stderr, flush=True)


def _key(problem: Problem) -> str:
    """Says whether a record's problem is still this one."""
    return hashlib.sha256(json.dumps([problem.prompt, problem.entry_point, problem.test]).encode()).hexdigest()[:16]


def _row(problem: Problem, completions: Sequence[str], results: Sequence[Result], label: str) -> dict:
    return {
        "task_id": problem.task_id,
        "problem": _key(problem),
        "label": label,
        "samples": len(results),
        "passed": sum(result.passed for result in results),
        "results": [
            {"completion": text, **{name: value for name, value in result.to_dict().items() if name != "output"}}
            for text, result in zip(completions, results, strict=True)
        ],
    }


def _check_completions(texts: Any, prompts: int, samples: int) -> None:
    counts = [len(each) if isinstance(each, (list, tuple)) else 0 for each in texts]
    if counts != [samples] * prompts:
        raise InputError(
            f"complete gave {counts} completions for {prompts} prompts; it must give a list of {samples} for each"
        )


def _read_record(record: str | Path, samples: int, label: str) -> dict[str, dict]:
    """task_id -> row, of those with as many samples. A last line that was cut short by a crash is mended away."""
    path = Path(record)
    if not path.exists():
        return {}
    content = path.read_bytes()
    whole = content[: content.rfind(b"\n") + 1]
    if whole != content:
        with path.open("r+b") as file:
            file.truncate(len(whole))
    rows = {}
    for number, line in enumerate(whole.splitlines(), 1):
        try:
            row = json.loads(line)
            rows[row["task_id"]] = row
            other = row["label"]
        except (ValueError, KeyError, TypeError):
            raise InputError(f"{path}, line {number} is no problem's result; give another record, or none") from None
        if other != label:
            raise InputError(f"{path} is a record of {other!r}, and this is {label!r}; give another record, or none")
    return {name: row for name, row in rows.items() if row.get("samples") == samples}
