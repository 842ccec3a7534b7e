"""`duonlp evaluate`: what a model is worth. `code` completes problems in HumanEval's format and runs the tests;
`summarization` (in shared/duonlp/cli/evaluate_summarization.py) scores summaries.

A further kind of evaluation is a further command of `app` here.
"""

import json
import os
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any, TextIO

import typer

from duonlp.cli import evaluate_summarization as cli_evaluate_summarization
from duonlp.cli.common import Debug, Framework, Json, need_model, print_json
from duonlp.errors import InputError
from duonlp.util.frameworks import load_package, quiet_stdout

app = typer.Typer(
    help="Measure a model: how much of the code it writes passes its tests, or how good its summaries are.",
    no_args_is_help=True,
)
app.command()(cli_evaluate_summarization.summarization)

SHOWN = 5
"""Unsolved problems that are named below the table."""


@dataclass(frozen=True)
class Settings:
    """What was asked for on the command line.

    k: pass@k for each. samples: completions of a problem, drawn batch_size at a time. temperature: 0 for greedy, which
    is for one sample. workers: programs that run at once. seconds: a program's time limit. limit: only so many of the
    first problems, 0 for all. record: JSON lines of the problems done so far, from which a second run goes on.
    """

    model: str
    problems: str
    k: tuple[int, ...] = (1,)
    samples: int = 1
    temperature: float = 0.2
    top_p: float = 0.95
    max_new_tokens: int = 256
    seed: int = 0
    batch_size: int = 10
    workers: int = 0
    seconds: float = 3.0
    limit: int = 0
    record: str = ""

    def __post_init__(self):
        at_least = {"samples": 1, "max_new_tokens": 1, "batch_size": 1, "workers": 0, "limit": 0, "seed": 0}
        for name, least in at_least.items():
            if getattr(self, name) < least:
                raise InputError(f"--{name.replace('_', '-')} is {getattr(self, name)}; it must be at least {least}")
        if self.temperature < 0 or not 0 < self.top_p <= 1 or self.seconds <= 0:
            raise InputError(
                f"--temperature is {self.temperature}, --top-p is {self.top_p} and --seconds is {self.seconds}; they must "
                "be at least 0, in (0, 1], and above 0"
            )
        if self.temperature == 0 and self.samples > 1:
            raise InputError(
                f"--temperature 0 is greedy and gives the same completion {self.samples} times; use --samples 1, or more"
                " temperature"
            )

    @property
    def label(self) -> str:
        """Says what decides a completion, for the record."""
        names = ("model", "temperature", "top_p", "max_new_tokens", "seed", "batch_size")
        return " ".join(f"{name}={getattr(self, name)}" for name in names)


@app.callback()
def _root() -> None:
    pass


@app.command()
def code(
    model: Annotated[str, typer.Option("--model", "-m", help="A folder in Hugging Face layout, or a Hub id.")] = "",
    problems: Annotated[str, typer.Option(help="A file in HumanEval's format: .jsonl or .jsonl.gz.")] = "",
    framework: Framework = "",
    samples: Annotated[
        int, typer.Option(help="Completions of a problem; the largest k by default.", show_default=False)
    ] = 0,
    k: Annotated[str, typer.Option("--k", help="pass@k for these, separated by commas.")] = "1",
    temperature: Annotated[float, typer.Option(help="Below 1 plays safe; 0 is greedy, for one sample.")] = 0.2,
    top_p: Annotated[float, typer.Option(help="Draw from the most likely tokens up to this probability.")] = 0.95,
    max_new_tokens: Annotated[int, typer.Option(help="Tokens of a completion at most.")] = 256,
    seed: Annotated[int, typer.Option(help="Of the random numbers: the same completions again, in tf and jax.")] = 0,
    batch_size: Annotated[int, typer.Option(help="Completions drawn at once.")] = 10,
    workers: Annotated[
        int, typer.Option(help="Programs that run at once; by default one a processor.", show_default=False)
    ] = 0,
    seconds: Annotated[float, typer.Option(help="Time limit of a program.")] = 3.0,
    limit: Annotated[int, typer.Option(help="Only so many of the first problems; 0 for all.")] = 0,
    record: Annotated[str, typer.Option(help="JSON lines of what is done; run again with it to go on.")] = "",
    allow_code_execution: Annotated[
        bool, typer.Option("--allow-code-execution", help="Run what the model writes; without this, nothing is run.")
    ] = False,
    output: Annotated[str, typer.Option(help="Write all results into this JSON file.")] = "",
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Complete programming problems, run their tests in a sandbox, and estimate pass@k."""
    need_model(model)
    if not problems:
        raise InputError("no problems given; pass --problems with a file in HumanEval's format (.jsonl or .jsonl.gz)")
    ks = numbers(k)
    settings = Settings(
        model, problems, ks, samples or max(ks), temperature, top_p, max_new_tokens, seed, batch_size, workers, seconds,
        limit, record,
    )  # fmt: skip
    check_output(output)
    check_allowed(allow_code_execution)
    with quiet_stdout():
        package, name = load_package(framework)
        report = run(package, name, settings)
    if output:
        write_json(report, output)
    if as_json:
        print_json(report)
    else:
        print_report(report, sys.stdout)
        if output:
            print(f"All results are in {output}")


def check_allowed(allow_code_execution: bool) -> None:
    """Raises InputError, which says why, unless code may be run: before a model is loaded for nothing."""
    from duonlp.evaluation.human_eval import DANGER

    if not allow_code_execution:
        raise InputError(f"{DANGER}; pass --allow-code-execution if you want that")


def numbers(text: str) -> tuple[int, ...]:
    """ "1,10" -> (1, 10).

    Raises:
        InputError: it is no list of positive numbers.
    """
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isdecimal() and int(part) > 0 for part in parts):
        raise InputError(f"--k is {text!r}; write positive numbers separated by commas, such as 1,10")
    return tuple(sorted({int(part) for part in parts}))


def run(package, framework: str, settings: Settings) -> dict[str, Any]:
    """Completes the problems with a model and runs their tests: programs that the model wrote are run.

    Args:
        package: tfnlp or jaxnlp.
        framework: its name for the report.

    Returns:
        what `evaluate_problems` gives, with "model", "framework" and "settings".

    Raises:
        InputError: problems that cannot be read, more k than samples, or an option that the model cannot follow.
        CheckpointError: the checkpoint cannot be found or read.
    """
    from duonlp.evaluation.human_eval import evaluate_problems, read_problems
    from duonlp.pipelines.pipeline import Progress

    problems = read_problems(settings.problems)
    problems = problems[: settings.limit or None]
    if settings.samples < max(settings.k):
        raise InputError(
            f"--samples is {settings.samples}, and --k goes up to {max(settings.k)}; draw at least as many"
        )
    complete = completer(package, settings)
    with Progress(len(problems), None, "problems") as bar:
        report = evaluate_problems(
            problems, complete, settings.k, samples=settings.samples, workers=settings.workers or os.cpu_count() or 1,
            seconds=settings.seconds, record=settings.record or None, label=f"{settings.label} framework={framework}",
            allow_code_execution=True, progress=lambda done, _: bar.advance(done - bar.done),
        )  # fmt: skip
    return {"model": settings.model, "framework": framework, "settings": asdict(settings), **report}


def completer(package, settings: Settings):
    """`complete(prompts, n)` over a text-generation pipeline, stopped where a function's body ends.

    What is drawn for a prompt depends on the seed, the prompt and batch_size alone.
    """
    import numpy as np

    from duonlp.evaluation.human_eval import STOP_STRINGS

    options: dict[str, Any] = {
        "max_new_tokens": settings.max_new_tokens,
        "stop_strings": list(STOP_STRINGS),
        "return_full_text": False,
        "handle_long_generation": "hole",  # the beginning of a prompt that is too long gives way
    }
    if settings.temperature > 0:
        options |= {"do_sample": True, "temperature": settings.temperature, "top_p": settings.top_p, "top_k": 0}
    pipe = package.pipeline("text-generation", settings.model, progress=False, batch_size=1, **options)

    def complete(prompts: Sequence[str], n: int) -> list[list[str]]:
        texts: list[list[str]] = [[] for _ in prompts]
        for part, start in enumerate(range(0, n, settings.batch_size)):
            rows = min(settings.batch_size, n - start)
            drawing = {}
            if settings.temperature > 0:  # another seed for each part: with the same one they would be the same texts
                state = np.random.SeedSequence([settings.seed, part]).generate_state(1)[0]
                drawing = {"num_return_sequences": rows, "seed": int(state) >> 1}
            for prompt, kept in zip(prompts, texts, strict=True):
                kept += [each["generated_text"] for each in pipe(prompt, **drawing)]
        return texts

    return complete


def check_output(output: str) -> None:
    """Raises InputError for a file that could not be written, before hours of work."""
    folder = Path(output).resolve().parent
    if output and (not folder.is_dir() or Path(output).is_dir() or not os.access(folder, os.W_OK)):
        raise InputError(
            f"--output is {output!r}; give the name of a file in a folder that exists and can be written to"
        )


def write_json(report: dict[str, Any], output: str) -> None:
    """The report in a file, whole or not at all."""
    path = Path(output)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.write_text(json.dumps(report, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    temporary.replace(path)


def print_report(report: dict[str, Any], out: TextIO) -> None:
    """pass@k and what became of the programs, as a table."""
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    console, totals = Console(file=out), report["totals"]
    console.print(f"{report['model']}  ({report['framework']})", style="bold", markup=False, highlight=False)
    table = Table(box=None, pad_edge=False, show_header=False)
    table.add_column()
    table.add_column(justify="right")
    for name, value in report["pass@k"].items():
        table.add_row(name, f"{value:.1%}", style="bold")
    table.add_row("problems solved", f"{totals['solved']} of {totals['problems']}")
    for status, count in totals["statuses"].items():
        table.add_row(escape(status), f"{count} of {totals['samples']}")
    console.print(table)
    console.print(f"The programs were held by: {', '.join(report['protection'])}", highlight=False)
    unsolved = [row for row in report["problems"] if not row["passed"]]
    for row in unsolved[:SHOWN]:
        first = row["results"][0]
        console.print(f"{row['task_id']}: {first['status']}, {first['error']}"[:200], markup=False, highlight=False)
    if len(unsolved) > SHOWN:
        console.print(f"... and {len(unsolved) - SHOWN} more without a completion that passed", highlight=False)
