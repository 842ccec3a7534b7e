"""`duonlp benchmark`: accuracy, latency, size and memory of classifiers in a run file, a picture, and two runs compared."""

import sys
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any

import typer

from duonlp.cli.common import Debug, Framework, Json, SettingsFile, SettingsOption
from duonlp.cli.training import DataConfig
from duonlp.errors import InputError

COMMAND = "duonlp benchmark"


@dataclass(frozen=True)
class BenchmarkSettings:
    """What is measured, and how.

    models: folders in Hugging Face layout or Hub ids, or NAME=one of them; the name is the folder's where there is none.
    data, config, split, text_column, label_column: what `read_labelled_texts` reads. limit: only so many, spread evenly over all.
    framework: "tf" or "jax"; "" for the one that is installed.
    out_of_scope, threshold, queries, repeats, warm_up, batch_size: as of PerformanceBenchmark.
    pipeline: options of the pipelines, such as max_length; they cut what is too long unless told otherwise.
    memory: measure it, in a process of each model's own.
    output: the run file. plot: a picture of all its records.
    """

    models: tuple[str, ...] = ()
    data: str = ""
    config: str | None = None
    split: str | None = None
    text_column: str | None = None
    label_column: str | None = None
    limit: int | None = None
    framework: str = ""
    out_of_scope: str | None = None
    threshold: float | None = None
    queries: int | None = 200
    repeats: int = 1
    warm_up: int = 20
    batch_size: int = 32
    pipeline: dict[str, Any] = field(default_factory=dict)
    memory: bool = True
    output: str = ""
    plot: str = ""

    def __post_init__(self):
        if not self.models:
            raise InputError("no model given; pass --model with a folder in Hugging Face layout, or run files to show")
        if not self.data:
            raise InputError("no data given; pass --data with a file, a folder, or a dataset's name on the Hub")
        if self.limit is not None and self.limit < 1:
            raise InputError(f"limit is {self.limit}; it must be at least 1, or none for all")


def benchmark(
    files: Annotated[
        list[str] | None, typer.Argument(metavar="[RUN]...", help="Run files to show, or with --compare to compare.")
    ] = None,
    compare: Annotated[
        bool, typer.Option("--compare", help="Two runs by name, or of one run every model with the first.")
    ] = False,
    fail_if_slower: Annotated[
        float | None,
        typer.Option(metavar="RATIO", help="With --compare: status 1 when a median latency grew beyond, e.g. 1.1."),
    ] = None,
    model: Annotated[
        list[str] | None,
        typer.Option("--model", "-m", metavar="[NAME=]MODEL", help="A folder, or a Hub id; repeat it for several."),
    ] = None,
    data: Annotated[str, typer.Option(help="Texts with labels: a file, a folder, or a dataset of the Hub.")] = "",
    data_config: DataConfig = None,
    split: Annotated[str, typer.Option(help="Of the data, such as validation.")] = "",
    text_column: Annotated[str, typer.Option(help="By default a usual name.")] = "",
    label_column: Annotated[str, typer.Option(help="By default a usual name.")] = "",
    limit: Annotated[int | None, typer.Option(help="Only so many texts, spread evenly over all.")] = None,
    framework: Framework = "",
    out_of_scope: Annotated[str, typer.Option(help="The label of texts that none of the others fits.")] = "",
    threshold: Annotated[
        float | None, typer.Option(help="Answers with a lower score count as out of scope, too.")
    ] = None,
    queries: Annotated[int | None, typer.Option(help="Texts that are timed one by one; 200 by default.")] = None,
    repeats: Annotated[int | None, typer.Option(help="How often each of them; once by default.")] = None,
    batch_size: Annotated[int | None, typer.Option(help="For accuracy and throughput; 32 by default.")] = None,
    memory: Annotated[
        bool | None, typer.Option("--memory/--no-memory", help="Measure memory, in a process of each model's own.")
    ] = None,
    output: Annotated[str, typer.Option(help="The run file; a record of the same name is replaced.")] = "",
    plot: Annotated[str, typer.Option(help="Accuracy against latency: .png, .svg or .pdf.")] = "",
    markdown: Annotated[bool, typer.Option("--markdown", help="Print tables in Markdown.")] = False,
    config: SettingsFile = "",
    option: SettingsOption = None,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Measure classifiers, show runs, or compare two: `--compare before.json after.json`."""
    from duonlp.cli.settings import settings_from

    flags = {
        "models": model or None, "data": data or None, "config": data_config, "split": split or None,
        "text_column": text_column or None, "label_column": label_column or None, "limit": limit, "framework": framework or None,
        "out_of_scope": out_of_scope or None, "threshold": threshold, "queries": queries, "repeats": repeats,
        "batch_size": batch_size, "memory": memory, "output": output or None, "plot": plot or None,
    }  # fmt: skip
    if fail_if_slower is not None and not compare:
        raise InputError("--fail-if-slower is for --compare; pass both, and the run files")
    if fail_if_slower is not None and fail_if_slower <= 0:
        raise InputError(f"--fail-if-slower is {fail_if_slower}; it must be a ratio above 0, such as 1.1")
    if files or compare:
        given = [name for name, value in flags.items() if value is not None and name != "plot"]
        if given or config or option:
            raise InputError(
                f"run files and --compare are for what was measured, and {given[0] if given else '--config or --option'} is "
                "for measuring; give one or the other"
            )
        if compare:
            _compare(files or [], fail_if_slower, plot, as_json, markdown)
        else:
            _show(files or [], plot, as_json, markdown)
        return
    settings = settings_from(BenchmarkSettings, config, flags, option or [], what=COMMAND)
    from duonlp.cli.common import remedies
    from duonlp.util.frameworks import quiet_stdout

    with quiet_stdout(), remedies():
        records, shown = measure(settings)
    if as_json:
        from duonlp.cli.common import print_json

        print_json({"records": [each.to_dict() for each in records], "output": settings.output or None})
    else:
        _print(shown, markdown)
        for file in filter(None, (settings.output, settings.plot)):
            print(f"written: {file}")


def measure(settings: BenchmarkSettings) -> tuple[list, list]:
    """Measures the models, in turns, and writes what was asked for; memory last, when everything else is written.

    Returns:
        their records, and all records that the run file has now.

    Raises:
        InputError: whatever is wrong in the settings or the data; what can be checked is, before a model is loaded.
        CheckpointError: a checkpoint cannot be found or read.
        MissingExtraError: a library is not installed.
    """
    from duonlp.benchmark.performance import PerformanceBenchmark, benchmark_together
    from duonlp.benchmark.record import check_run_file, write_records
    from duonlp.benchmark.report import plot_records
    from duonlp.checkpoints.checkpoint import open_checkpoint
    from duonlp.training.settings_file import as_table
    from duonlp.util.frameworks import load_package
    from duonlp.util.pictures import check_picture_file, require_matplotlib

    models = model_names(settings.models)
    if settings.output:
        check_run_file(Path(settings.output))
    if settings.plot:
        check_picture_file(Path(settings.plot))
        require_matplotlib("records are drawn")
    texts = read_texts(settings)
    PerformanceBenchmark(str, texts, "check", **_options(settings))  # what is wrong is wrong before a model is loaded
    package, framework = load_package(settings.framework)
    options = {"truncation": True, **settings.pipeline}
    print(f"measuring {', '.join(models)} on {len(texts.texts)} texts", file=sys.stderr)
    benchmarks = []
    for name, model in models.items():
        folder = open_checkpoint(model).folder
        pipeline = package.pipeline("text-classification", folder, **options)
        benchmarks.append(
            PerformanceBenchmark(
                pipeline, texts, name, folder=folder, framework=framework, model=model, **_options(settings)
            )
        )
    table = as_table(settings)
    # What this process holds is every model's; a child answers with one alone, when nothing is timed any more.
    records = [replace(record, memory=None, settings=table) for record in benchmark_together(benchmarks)]
    shown = write_records(settings.output, records) if settings.output else records
    if settings.memory:
        print("measuring memory, in a process of each model's own", file=sys.stderr)
        records = [
            replace(record, memory=_memory(each, options)) for each, record in zip(benchmarks, records, strict=True)
        ]
        shown = write_records(settings.output, records) if settings.output else records
    if settings.plot:
        plot_records(shown, settings.plot, reference=shown[0].name if len(shown) > 1 else None)
    return records, shown


def _memory(benchmark, options: dict[str, Any]):
    """Memory of a process for one model; None, with a warning, where that fails: the other figures are good without it."""
    from duonlp.benchmark.memory import memory_alone

    try:
        return memory_alone(
            benchmark.framework, benchmark.folder, benchmark.queries, batch_size=benchmark.batch_size, options=options
        )
    except InputError as error:
        warnings.warn(f"{benchmark.name} is recorded without its memory: {error}", stacklevel=2)
        return None


def _options(settings: BenchmarkSettings) -> dict[str, Any]:
    names = "out_of_scope", "threshold", "queries", "repeats", "warm_up", "batch_size"
    return {name: getattr(settings, name) for name in names}


def read_texts(settings: BenchmarkSettings):
    """The LabelledTexts that were asked for."""
    from duonlp.data.labelled.texts import read_labelled_texts

    return read_labelled_texts(
        settings.data, settings.split, config=settings.config, text_column=settings.text_column,
        label_column=settings.label_column, limit=settings.limit,
    )  # fmt: skip


def model_names(models: Sequence[str]) -> dict[str, str]:
    """Names of models to where they are: NAME=MODEL, or the last part of a path that tells it apart; `best` tells nothing.

    Raises:
        InputError: two models of one name.
    """
    names: dict[str, str] = {}
    for given in models:
        name, equals, model = given.partition("=")
        if not equals or Path(given).exists():
            model = given
            parts = [part for part in Path(given).resolve().parts if part != "best"] if Path(given).is_dir() else []
            name = parts[-1] if parts else given
        if not name.strip() or not model:
            raise InputError(
                f"--model {given!r} is not NAME=MODEL; write for example --model teacher=runs/teacher/best"
            )
        if name in names:
            raise InputError(f"two models are named {name!r}; give names of their own, as --model NAME=MODEL")
        names[name] = model
    return names


def _show(files: Sequence[str], plot: str, as_json: bool, markdown: bool) -> None:
    from duonlp.benchmark.record import read_records
    from duonlp.benchmark.report import plot_records
    from duonlp.cli.common import print_json

    records = [record for file in files for record in read_records(file)]
    if plot:
        plot_records(records, plot, reference=records[0].name if len(records) > 1 else None)
    if as_json:
        print_json({"records": [each.to_dict() for each in records]})
    else:
        _print(records, markdown)


def _compare(files: Sequence[str], fail_if_slower: float | None, plot: str, as_json: bool, markdown: bool) -> None:
    from duonlp.benchmark.comparison import compare_runs
    from duonlp.benchmark.record import read_records
    from duonlp.benchmark.report import print_comparison, to_markdown
    from duonlp.cli.common import print_json

    if len(files) not in (1, 2) or plot:
        raise InputError(
            "a comparison draws no picture; leave --plot out"
            if plot
            else f"--compare takes one run file or two, and got {len(files)}; write --compare before.json after.json"
        )
    comparison = compare_runs(*(read_records(file) for file in files))
    if as_json:
        print_json(comparison.to_dict())
    elif markdown:
        print(to_markdown(comparison))
    else:
        print_comparison(comparison)
    if fail_if_slower is not None and comparison.slowest() > fail_if_slower:
        print(
            f"duonlp: a median latency is {comparison.slowest():.3f} times what it was, above {fail_if_slower:g}",
            file=sys.stderr,
        )
        raise typer.Exit(1)


def _print(records: Sequence, markdown: bool) -> None:
    from duonlp.benchmark.report import print_records, to_markdown

    if markdown:
        print(to_markdown(records))
    else:
        print_records(records)
