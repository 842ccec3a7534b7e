"""``duonlp evaluate question-answering``: readers and files of predictions against references, with intervals."""

import math
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TextIO

from duonlp.cli.common import Debug, Framework, Json, cli_option, print_json
from duonlp.cli.evaluate_summarization import check_output, file_names
from duonlp.cli.summarization_systems import model_names
from duonlp.cli.training import DataConfig, Encoding, Quoting
from duonlp.errors import InputError
from duonlp.util.console import plain_console
from duonlp.util.files import locked_folder, storage_errors, write_text
from duonlp.util.frameworks import load_package, quiet_stdout
from duonlp.util.json_text import to_json

if TYPE_CHECKING:
    from duonlp.data.questions import Questions

SHOWN = {"exact": "EM", "f1": "F1", "HasAns_exact": "HasAns EM", "HasAns_f1": "HasAns F1", "NoAns_f1": "NoAns"}
"""Scores in tables and figures, and their headings. (EM and F1 of unanswerable questions are the same.)"""

NO_ANSWER = "no answer"
"""Name of the baseline that finds no answer in any context."""


@dataclass(frozen=True)
class Settings:
    """Settings of ``duonlp evaluate question-answering``.

    Attributes:
        data: Questions with answers, as `read_questions` takes them; so are `split`, `config`, `encoding` and `quoting`.
        limit: Evaluate at most N questions, evenly spaced; 0 for all.
        models: Checkpoints, each as NAME=CHECKPOINT or alone.
        predictions: NAME=FILE for each file of predictions in the format of SQuAD's script, {id: text}.
        null_gaps: NAME=FILE for files of null gaps, {id: number}, that belong to predictions of that name.
        framework: "tf" or "jax"; "" for the installed one.
        max_length: Number of tokens in a window; 0 for what the checkpoint was trained with, else 384.
        doc_stride: Overlap of windows in tokens; None for what the checkpoint was trained with, else 128.
        max_answer_length: Maximum length of an answer in tokens; 0 for what the checkpoint was tuned with, else 30.
        batch_size: Windows that a model reads at once.
        threshold: Null gap above which there is no answer; None for what the checkpoint was tuned with, else 0.
        confidence: Coverage of the intervals.
        resamples: Bootstrap resamples.
        seed: Seed of the resamples.
        output: Folder for results; "" for none.
    """

    data: str
    split: str = ""
    config: str | None = None
    encoding: str | None = None
    quoting: bool | None = None
    limit: int = 0
    models: tuple[str, ...] = ()
    predictions: tuple[str, ...] = ()
    null_gaps: tuple[str, ...] = ()
    framework: str = ""
    max_length: int = 0
    doc_stride: int | None = None
    max_answer_length: int = 0
    batch_size: int = 16
    threshold: float | None = None
    confidence: float = 0.95
    resamples: int = 1000
    seed: int = 0
    output: str = ""

    def __post_init__(self) -> None:
        if not self.data:
            raise InputError("no data given; pass --data with a file, a folder, or a dataset's name on the Hub")
        for name, least in (("limit", 0), ("max_length", 0), ("max_answer_length", 0), ("batch_size", 1)):
            if getattr(self, name) < least:
                raise InputError(f"--{name.replace('_', '-')} is {getattr(self, name)}; it must be at least {least}")
        if self.threshold is not None and math.isnan(self.threshold):
            raise InputError("--threshold is nan; give a number, or leave it out")


@dataclass(frozen=True)
class System:
    """A system that answers questions.

    Attributes:
        name: The name in tables.
        source: The checkpoint, or the file of predictions; "" for the baseline.
        is_model: Whether the source is a checkpoint.
        null_gaps: File of null gaps that belongs to the predictions; "" for none.
    """

    name: str
    source: str = ""
    is_model: bool = False
    null_gaps: str = ""


@dataclass(frozen=True)
class Answers:
    """What a system answers.

    Attributes:
        texts: The best answer to each question, by id; "" for none.
        null_gaps: By id, how much the system prefers no answer; None if `texts` are final.
        threshold: Null gap above which there is no answer.
        origin: Where the threshold comes from: "given", "tuned" (the checkpoint's), "default", or "" without null gaps.
        seconds: Time that a model took, else None.
    """

    texts: Mapping[str, str]
    null_gaps: Mapping[str, float] | None = None
    threshold: float | None = None
    origin: str = ""
    seconds: float | None = None


def question_answering(
    data: Annotated[
        str,
        cli_option("--data", "-d", help="Questions with answers, such as SQuAD: a file, folder or Hub id (required)."),
    ] = "",
    split: Annotated[str, cli_option(help="Split of the data: train, validation or test, if it has several.")] = "",
    data_config: DataConfig = None,
    encoding: Encoding = None,
    quoting: Quoting = None,
    limit: Annotated[int, cli_option(help="Evaluate at most N questions, evenly spaced (default: all).")] = 0,
    model: Annotated[
        list[str] | None,
        cli_option("--model", "-m", help="Reader, as a folder, a Hub id or NAME=FOLDER; repeatable."),
    ] = None,
    predictions: Annotated[
        list[str] | None,
        cli_option(metavar="NAME=FILE", help="Answers of another system, JSON of id to text; repeatable."),
    ] = None,
    null_gaps: Annotated[
        list[str] | None,
        cli_option(metavar="NAME=FILE", help="JSON of id to preference for no answer, for --predictions; repeatable."),
    ] = None,
    framework: Framework = "",
    max_length: Annotated[int, cli_option(help="Tokens in a window (default: as trained, else 384).")] = 0,
    doc_stride: Annotated[
        int | None, cli_option(help="Tokens by which windows overlap (default: as trained, else 128).")
    ] = None,
    max_answer_length: Annotated[int, cli_option(help="Longest answer in tokens (default: as tuned, else 30).")] = 0,
    batch_size: Annotated[int, cli_option(help="Windows read at once (default 16).")] = 16,
    threshold: Annotated[
        float | None,
        cli_option(help="Null gap above which there is no answer (default: the one tuned in training, or 0)."),
    ] = None,
    confidence: Annotated[float, cli_option(help="Confidence level of the intervals (default 0.95).")] = 0.95,
    resamples: Annotated[int, cli_option(help="Bootstrap resamples for intervals (default 1000).")] = 1000,
    seed: Annotated[int, cli_option(help="Seed for resampling (default 0).")] = 0,
    plot: Annotated[str, cli_option(help="Draw the comparison as bars to a .png, .svg or .pdf file.")] = "",
    output: Annotated[str, cli_option(help="Folder for the predictions and scores.json.")] = "",
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Score answers with EM and F1, with and without answerable questions, and compare readers."""
    settings = Settings(
        data, split, data_config, encoding, quoting, limit, tuple(model or ()), tuple(predictions or ()),
        tuple(null_gaps or ()), framework, max_length, doc_stride, max_answer_length, batch_size, threshold, confidence,
        resamples, seed, output,
    )  # fmt: skip
    if plot:
        from duonlp.util.pictures import check_picture_file, require_matplotlib

        check_picture_file(Path(plot))
        require_matplotlib("scores are plotted")
    with quiet_stdout():
        report = evaluate_answers(settings)
    if plot:
        plot_report(report, plot)
    if as_json:
        print_json(report)
    else:
        print_report(report, sys.stdout)


def evaluate_answers(settings: Settings) -> dict[str, Any]:
    """Read the questions, let every model answer them, and score all systems and the baseline.

    Returns:
        The report that is also written to scores.json: "data", "systems" (by name: "kind", "source", "threshold", "origin" of
        the threshold, "seconds", "scores" as :meth:`SquadScores.to_dict` returns them), "confidence", "resamples", "seed",
        "framework", "settings".

    Raises:
        InputError: Settings or data are invalid; as far as possible before a model runs.
        CheckpointError: A checkpoint cannot be found or read.
    """
    from duonlp.data.questions import read_questions
    from duonlp.metrics.bootstrap import check_settings
    from duonlp.metrics.question_answering import squad_scores

    check_settings(settings.confidence, settings.resamples, settings.seed)
    systems = list_systems(settings)
    output = check_output(settings.output, figure="") if settings.output else None
    questions = read_questions(
        settings.data, settings.split or None, config=settings.config, limit=settings.limit or None,
        encoding=settings.encoding, quoting=settings.quoting,
    )  # fmt: skip
    answers = {system.name: read_system(system, settings) for system in systems if not system.is_model}
    for found in answers.values():  # raises for a file that does not belong to the data before a model runs
        squad_scores(found.texts, questions, null_gaps=found.null_gaps, resamples=0)
    answers[NO_ANSWER] = Answers(dict.fromkeys((row["id"] for row in questions), ""))
    framework = None
    if any(system.is_model for system in systems):
        package, framework = load_package(settings.framework)
        answers |= {system.name: answer(package, system, questions, settings) for system in systems if system.is_model}
    order = {system.name: system for system in (*systems, System(NO_ANSWER))}
    rows = {
        name: {
            "kind": "model" if system.is_model else "file" if system.source else "baseline", "source": system.source,
            "threshold": answers[name].threshold, "origin": answers[name].origin, "seconds": answers[name].seconds,
            "scores": squad_scores(
                answers[name].texts, questions, null_gaps=answers[name].null_gaps, threshold=answers[name].threshold,
                confidence=settings.confidence, resamples=settings.resamples, seed=settings.seed,
            ).to_dict(),
        }
        for name, system in order.items()
    }  # fmt: skip
    report = {
        "data": {"source": settings.data, "split": settings.split or None, "questions": len(questions)},
        "systems": rows, "confidence": settings.confidence, "resamples": settings.resamples, "seed": settings.seed,
        "framework": framework, "settings": asdict(settings),
    }  # fmt: skip
    if output:
        write_output(output, report, answers)
    return report


def list_systems(settings: Settings) -> list[System]:
    """Return the systems to evaluate: models, then files of predictions.

    Raises:
        InputError: An argument is not NAME=FILE, two systems have the same name, null gaps belong to no predictions, or there is
            a threshold, but no system with null gaps.
    """
    gaps: dict[str, str] = {}
    for argument in settings.null_gaps:
        name, file = _named("--null-gaps", argument)
        if name in gaps:
            raise InputError(f"--null-gaps gives {name!r} two files, {gaps[name]!r} and {file!r}; give one of them")
        gaps[name] = file
    alone = model_names([model for model in settings.models if not _is_named(model)])
    models = [_named("--model", model) if _is_named(model) else (alone[model], model) for model in settings.models]
    files = [_named("--predictions", argument) for argument in settings.predictions]
    systems = [System(name, source, True) for name, source in models]
    systems += [System(name, source, False, gaps.pop(name, "")) for name, source in files]
    if gaps:
        raise InputError(
            f"--null-gaps names {next(iter(gaps))!r}, but no --predictions do; give the predictions of that name"
        )
    names = [NO_ANSWER, *(system.name for system in systems)]
    for name in names:
        if names.count(name) > 1:
            raise InputError(f"two systems are named {name!r}; name them, as in --model NAME=FOLDER")
    if settings.threshold is not None and not any(system.is_model or system.null_gaps for system in systems):
        raise InputError(
            f"--threshold is {settings.threshold}, but no system has null gaps to compare with it; give --null-gaps NAME=FILE"
        )
    return systems


def _is_named(model: str) -> bool:
    return "=" in model and not Path(model).exists()


def _named(flag: str, argument: str) -> tuple[str, str]:
    name, equals, source = argument.partition("=")
    if not (equals and name.strip() and source):
        raise InputError(f"{flag} {argument!r} is not NAME=FILE; write for example {flag} mine=answers.json")
    return name.strip(), source


def read_system(system: System, settings: Settings) -> Answers:
    """Read the predictions of a system, and its null gaps if there are any.

    Raises:
        InputError: A file cannot be read, or is not a JSON object of texts or numbers.
    """
    from duonlp.metrics.question_answering import read_answers, read_null_gaps

    texts = read_answers(system.source)
    if not system.null_gaps:
        return Answers(texts)
    given = settings.threshold is not None
    return Answers(texts, read_null_gaps(system.null_gaps), settings.threshold or 0.0, "given" if given else "default")


def answer(package: Any, system: System, questions: "Questions", settings: Settings) -> Answers:
    """Let a model answer the questions.

    Raises:
        InputError: The model has no question-answering head, or does not support the settings.
        CheckpointError: The checkpoint cannot be found or read.
    """
    from duonlp.evaluation.reader import predict_answers
    from duonlp.retrieval.reader import load_reader_pipeline

    start = time.monotonic()
    pipe, trained = load_reader_pipeline(package, system.source, batch_size=settings.batch_size)
    options: dict[str, Any] = {"max_answer_len": 30} if trained is None else {
        name: getattr(trained, name) for name in ("max_seq_len", "doc_stride", "max_answer_len")
    }  # fmt: skip
    given = {
        "max_seq_len": settings.max_length or None, "doc_stride": settings.doc_stride,
        "max_answer_len": settings.max_answer_length or None,
    }  # fmt: skip
    options |= {name: value for name, value in given.items() if value is not None}
    threshold, origin = settings.threshold, "given"
    if threshold is None and trained is not None and trained.null_threshold is not None:
        threshold, origin = trained.null_threshold, "tuned"
    if threshold is None:
        threshold, origin = 0.0, "default"
    texts, gaps = predict_answers(pipe, questions, **options)
    return Answers(texts, gaps, threshold, origin, round(time.monotonic() - start, 3))


def write_output(output: Path, report: dict[str, Any], answers: Mapping[str, Answers]) -> None:
    """Write the predictions and null gaps of every system, and last scores.json, which marks the results as complete."""
    from duonlp.metrics.question_answering import write_answers, write_null_gaps

    files = file_names(list(answers))
    with storage_errors(output):
        (output / "predictions").mkdir(parents=True, exist_ok=True)
    with locked_folder(output):
        check_output(str(output), figure="")  # again, because another process may have finished since
        for name, found in answers.items():
            file = output / Path(files[name]).with_suffix(".json")
            write_answers(file, found.texts)
            if found.null_gaps is not None:
                write_null_gaps(file.with_name(f"{file.stem}.null_gaps.json"), found.null_gaps)
        write_text(output / "scores.json", to_json(report, indent=2) + "\n")


def plot_report(report: Mapping[str, Any], file: str) -> None:
    """Draw the systems of a report as bars with intervals."""
    from duonlp.metrics.bars import plot_bars
    from duonlp.metrics.bootstrap import Score

    def bars(scores: Mapping[str, Any]) -> dict[str, Score]:
        bounds = scores["intervals"]
        return {
            title: Score(bounds[name]["low"], scores[name], bounds[name]["high"])
            for name, title in SHOWN.items()
            if name in scores
        }

    caption = "percent" + (f", {report['confidence']:.0%} intervals" if report["resamples"] else "")
    count = report["data"]["questions"]
    systems = {name: bars(row["scores"]) for name, row in report["systems"].items()}
    plot_bars(systems, file, title=f"{Path(report['data']['source']).name}, {count} questions", caption=caption)


def print_report(report: Mapping[str, Any], out: TextIO) -> None:
    """Print two rows per system: its scores, and below them their intervals."""
    from rich.table import Table
    from rich.text import Text

    console, systems = plain_console(file=out), report["systems"]
    names = [name for name in SHOWN if name in systems[NO_ANSWER]["scores"]]
    has_gaps = any("best_f1" in row["scores"] for row in systems.values())
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column(f"{report['data']['questions']} questions", no_wrap=True)
    for name in (*(SHOWN[name].replace(" ", "\n") for name in names), *(("threshold", "best F1") if has_gaps else ())):
        table.add_column(name, justify="right", no_wrap=True)
    for system, row in systems.items():
        table.add_row(Text(system, style="bold"), *_score_cells(row, names))
        table.add_row("", *_interval_cells(row, names))
    console.print(table)
    if has_gaps:
        console.print("best F1: at the threshold best for these questions, so slightly optimistic")
    if report["settings"]["output"]:
        console.print(f"Results: {report['settings']['output']}", soft_wrap=True)


def _score_cells(row: Mapping[str, Any], names: Sequence[str]) -> list[str]:
    scores = row["scores"]
    threshold = "" if row["threshold"] is None else f"{row['threshold']:.2f}"
    return [
        *(f"{scores[name]:.1f}" for name in names),
        threshold,
        f"{scores['best_f1']:.1f}" if "best_f1" in scores else "",
    ]


def _interval_cells(row: Mapping[str, Any], names: Sequence[str]) -> list[str]:
    scores = row["scores"]
    bounds = [scores["intervals"][name] for name in names]
    cells = ["" if bound["low"] is None else f"{bound['low']:.0f}-{bound['high']:.0f}" for bound in bounds]
    return [*cells, row["origin"], f"at {scores['best_f1_thresh']:.2f}" if "best_f1" in scores else ""]
