"""``duonlp evaluate``: the quality of a model's output.

``code`` (here) completes problems in HumanEval's format and runs their tests; ``summarization``
(``duonlp.cli.evaluate_summarization``) scores summaries, ``question-answering``
(``duonlp.cli.evaluate_question_answering``) answers. Another kind of evaluation is another command of `app`.
"""

import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TextIO

import typer

from duonlp.cli.common import Debug, Framework, Json, Model, cli_option, need_model, print_json
from duonlp.cli.evaluate_question_answering import question_answering
from duonlp.cli.evaluate_retrieval import retrieval
from duonlp.cli.evaluate_summarization import summarization
from duonlp.errors import InputError
from duonlp.util.console import plain_console
from duonlp.util.files import write_text
from duonlp.util.frameworks import load_package, quiet_stdout
from duonlp.util.json_text import to_json

if TYPE_CHECKING:
    from duonlp.typing import Engine

app = typer.Typer(
    help="Evaluate code generation, summarization, question answering or retrieval.", no_args_is_help=True
)

UNSOLVED_SHOWN = 5
"""Unsolved problems listed below the table."""


@dataclass(frozen=True)
class Settings:
    """Settings of ``duonlp evaluate code``.

    Attributes:
        model: A folder in Hugging Face layout, or a Hub id.
        problems: A file in HumanEval's format.
        k: The values of k to report pass@k for.
        samples: Completions per problem.
        temperature: Sampling temperature; 0 for greedy decoding, which allows one sample.
        top_p: Nucleus of the sampling.
        max_new_tokens: Maximum length of a completion.
        seed: Sampling seed.
        batch_size: Completions generated at once.
        workers: Programs run at once; 0 for one per processor.
        seconds: Time limit of a program.
        limit: Evaluate only the first N problems; 0 for all.
        record: JSONL file of finished problems, from which a second run resumes; "" for none.
        unsafe: Whether to run programs even where the kernel cannot isolate them.
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
    unsafe: bool = False

    def __post_init__(self) -> None:
        minimum = {"samples": 1, "max_new_tokens": 1, "batch_size": 1, "workers": 0, "limit": 0, "seed": 0}
        for name, least in minimum.items():
            if getattr(self, name) < least:
                raise InputError(f"--{name.replace('_', '-')} is {getattr(self, name)}; it must be at least {least}")
        if self.temperature < 0:
            raise InputError(f"--temperature is {self.temperature}; it must be at least 0")
        if not 0 < self.top_p <= 1:
            raise InputError(f"--top-p is {self.top_p}; it must be above 0 and at most 1")
        if self.seconds <= 0:
            raise InputError(f"--seconds is {self.seconds}; it must be above 0")
        if self.temperature == 0 and self.samples > 1:
            raise InputError(
                f"--temperature 0 is greedy decoding, which gives the same completion {self.samples} times; use --samples 1 "
                "or a higher temperature"
            )

    @property
    def label(self) -> str:
        """Settings that determine the completions, as recorded with them."""
        names = ("model", "temperature", "top_p", "max_new_tokens", "seed", "batch_size")
        return " ".join(f"{name}={getattr(self, name)}" for name in names)


@app.callback()
def _root() -> None:
    pass


@app.command()
def code(
    model: Model = "",
    problems: Annotated[
        str, cli_option(help="Problems in HumanEval's format: a .jsonl or .jsonl.gz file (required).")
    ] = "",
    framework: Framework = "",
    samples: Annotated[int, cli_option(help="Completions per problem (default: the largest k).")] = 0,
    k: Annotated[str, cli_option("--k", help="Values of k for pass@k, comma-separated (default 1).")] = "1",
    temperature: Annotated[
        float, cli_option(help="Sampling temperature; 0 is greedy decoding, for one sample (default 0.2).")
    ] = 0.2,
    top_p: Annotated[
        float, cli_option(help="Sample from the fewest tokens with this total probability (default 0.95).")
    ] = 0.95,
    max_new_tokens: Annotated[int, cli_option(help="Maximum length of a completion in tokens (default 256).")] = 256,
    seed: Annotated[int, cli_option(help="Sampling seed; gives the same completions in tf and jax (default 0).")] = 0,
    batch_size: Annotated[int, cli_option(help="Completions generated at once (default 10).")] = 10,
    workers: Annotated[int, cli_option(help="Programs run at once (default: one per processor).")] = 0,
    seconds: Annotated[float, cli_option(help="Time limit of a program in seconds (default 3).")] = 3.0,
    limit: Annotated[int, cli_option(help="Evaluate only the first N problems (default: all).")] = 0,
    record: Annotated[
        str, cli_option(help="JSONL file of finished problems, from which the same command resumes.")
    ] = "",
    allow_code_execution: Annotated[
        bool, cli_option("--allow-code-execution", help="Run the programs the model writes (required).")
    ] = False,
    unsafe: Annotated[
        bool,
        cli_option(
            "--unsafe",
            help="Run the programs even where the kernel cannot isolate them: they could then read and change your files, "
            "use the network, stop your other processes and forge their verdicts.",
        ),
    ] = False,
    output: Annotated[str, cli_option(help="JSON file for all results.")] = "",
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Complete programming problems, run their tests in a sandbox and estimate pass@k."""
    need_model(model)
    if not problems:
        raise InputError("no problems given; pass --problems with a file in HumanEval's format (.jsonl or .jsonl.gz)")
    ks = parse_ks(k)
    settings = Settings(
        model, problems, ks, samples or max(ks), temperature, top_p, max_new_tokens, seed, batch_size, workers, seconds,
        limit, record, unsafe,
    )  # fmt: skip
    check_output(output)
    require_permission(allow_code_execution, unsafe)
    with quiet_stdout():
        package, name = load_package(framework)
        report = evaluate_code(package, name, settings)
    if output:
        write_json(report, output)
    if as_json:
        print_json(report)
    else:
        print_report(report, sys.stdout)
        if output:
            print(f"Results: {output}")


app.command()(summarization)
app.command()(question_answering)
app.command()(retrieval)


def require_permission(allow_code_execution: bool, unsafe: bool = False) -> None:
    """Raise InputError unless generated code may and can be run; called before a model is loaded.

    Args:
        allow_code_execution: Whether the user allowed it.
        unsafe: Whether the user allowed it even without isolation.
    """
    from duonlp.evaluation.human_eval import DANGER
    from duonlp.evaluation.sandbox import UNSAFE, IsolationError, require_isolation

    if not allow_code_execution:
        raise InputError(f"{DANGER}; pass --allow-code-execution if you want that")
    try:
        require_isolation(unsafe=unsafe)
    except IsolationError as error:
        raise InputError(f"{error.message}, or pass --unsafe: {UNSAFE}") from None


def parse_ks(text: str) -> tuple[int, ...]:
    """Parse the values of k, sorted and without duplicates: "10,1" -> (1, 10).

    Raises:
        InputError: The text is not a list of positive integers.
    """
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isdecimal() and int(part) > 0 for part in parts):
        raise InputError(f"--k is {text!r}; give positive integers separated by commas, such as 1,10")
    return tuple(sorted({int(part) for part in parts}))


def evaluate_code(package: "Engine", framework: str, settings: Settings) -> dict[str, Any]:
    """Complete the problems with a model and run their tests, which executes programs that the model wrote.

    Args:
        package: tfnlp or jaxnlp.
        framework: The framework's name, for the report.
        settings: The model, the problems and their options.

    Returns:
        The report of `evaluate_problems` with "model", "framework" and "settings".

    Raises:
        InputError: The problems cannot be read, a k is larger than `samples`, or the model does not support an option.
        CheckpointError: The checkpoint cannot be found or read.
    """
    from duonlp.evaluation.human_eval import evaluate_problems, read_problems
    from duonlp.util.console import Progress

    problems = read_problems(settings.problems)
    problems = problems[: settings.limit or None]
    if settings.samples < max(settings.k):
        raise InputError(
            f"--samples is {settings.samples} and the largest --k is {max(settings.k)}; pass --samples {max(settings.k)} "
            "or more"
        )
    complete = completer(package, settings)
    with Progress(len(problems), None, "problems") as bar:
        report = evaluate_problems(
            problems, complete, settings.k, samples=settings.samples, workers=settings.workers or os.cpu_count() or 1,
            seconds=settings.seconds, record=settings.record or None, label=f"{settings.label} framework={framework}",
            allow_code_execution=True, unsafe=settings.unsafe, progress=lambda done, _: bar.advance(done - bar.done),
        )  # fmt: skip
    return {"model": settings.model, "framework": framework, "settings": asdict(settings), **report}


def completer(package: "Engine", settings: Settings) -> Callable[[Sequence[str], int], list[list[str]]]:
    """Return ``complete(prompts, n)``, which generates n completions of each prompt up to the end of the function's body.

    The completions of a prompt depend only on the seed, the prompt and batch_size.
    """
    import numpy as np

    from duonlp.evaluation.human_eval import STOP_STRINGS

    options: dict[str, Any] = {
        "max_new_tokens": settings.max_new_tokens,
        "stop_strings": list(STOP_STRINGS),
        "return_full_text": False,
        "handle_long_generation": "hole",  # truncates the beginning of a prompt that is too long
    }
    if settings.temperature > 0:
        options |= {"do_sample": True, "temperature": settings.temperature, "top_p": settings.top_p, "top_k": 0}
    pipe = package.pipeline("text-generation", settings.model, progress=False, batch_size=1, **options)

    def complete(prompts: Sequence[str], n: int) -> list[list[str]]:
        completions: list[list[str]] = [[] for _ in prompts]
        for part, start in enumerate(range(0, n, settings.batch_size)):
            rows = min(settings.batch_size, n - start)
            sampling = {}
            if settings.temperature > 0:  # a seed per part: one seed would give the same texts again
                state = np.random.SeedSequence([settings.seed, part]).generate_state(1)[0]
                sampling = {"num_return_sequences": rows, "seed": int(state) >> 1}
            for prompt, texts in zip(prompts, completions, strict=True):
                texts += [result["generated_text"] for result in pipe(prompt, **sampling)]
        return completions

    return complete


def check_output(output: str) -> None:
    """Raise InputError if the output file cannot be written; called before any work is done."""
    folder = Path(output).resolve().parent
    if output and (not folder.is_dir() or Path(output).is_dir() or not os.access(folder, os.W_OK)):
        raise InputError(f"--output is {output!r}; give a file in an existing, writable folder")


def write_json(report: dict[str, Any], output: str) -> None:
    """Write the report to a file atomically."""
    write_text(output, to_json(report, indent=2) + "\n")


def print_report(report: dict[str, Any], out: TextIO) -> None:
    """Print pass@k and the outcomes of the programs as a table."""
    from rich.table import Table

    console, totals = plain_console(file=out), report["totals"]
    console.print(f"{report['model']}  ({report['framework']})", style="bold")
    table = Table(box=None, pad_edge=False, show_header=False)
    table.add_column()
    table.add_column(justify="right")
    for name, value in report["pass@k"].items():
        table.add_row(name, f"{value:.1%}", style="bold")
    table.add_row("problems solved", f"{totals['solved']} of {totals['problems']}")
    for status, count in totals["statuses"].items():
        table.add_row(status, f"{count} of {totals['samples']}")
    console.print(table)
    console.print(f"sandbox: {', '.join(report['protection'])}")
    unsolved = [row for row in report["problems"] if not row["passed"]]
    for row in unsolved[:UNSOLVED_SHOWN]:
        first = row["results"][0]
        console.print(f"{row['task_id']}: {first['status']}, {first['error']}"[:200])
    if len(unsolved) > UNSOLVED_SHOWN:
        console.print(f"... and {len(unsolved) - UNSOLVED_SHOWN} more unsolved problems")
