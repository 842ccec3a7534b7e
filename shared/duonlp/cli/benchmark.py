"""``duonlp benchmark``: accuracy, latency, size and memory of classifiers, recorded in a run file and compared."""

import sys
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from duonlp.cli.common import Debug, Framework, Json, SettingsFile, cli_option, print_json, with_line_ends
from duonlp.cli.training import DataConfig, Encoding, LabelColumn, LabelMap, Quoting, TextColumn, TextTemplate
from duonlp.errors import InputError
from duonlp.util.frameworks import load_package, quiet_stdout

if TYPE_CHECKING:
    from duonlp.benchmark.performance import PerformanceBenchmark
    from duonlp.benchmark.record import BenchmarkRecord, Memory
    from duonlp.data.labelled.texts import LabelledTexts

COMMAND = "duonlp benchmark"


@dataclass(frozen=True)
class BenchmarkSettings:
    """Settings of a benchmark.

    Attributes:
        models: Folders in Hugging Face layout or Hub ids, or NAME=MODEL; the name defaults to the folder's.
        data: Labeled texts, as :func:`duonlp.data.read_labelled_texts` takes them; so are `config`, `split`,
            `text_column`, `text_template`, `label_column`, `label_map`, `encoding` and `quoting`.
        limit: Use at most this many texts, evenly spaced; None for all.
        framework: "tf" or "jax"; "" for the installed one.
        out_of_scope: See :class:`duonlp.benchmark.PerformanceBenchmark`; so are `threshold`, `queries`, `repeats`,
            `warm_up` and `batch_size`.
        pipeline: Options of the pipelines, such as max_length. Long texts are truncated unless they say otherwise.
        memory: Whether to measure memory, in a separate process per model.
        output: The run file; "" for none.
        plot: A file for the figure of all records in the run file; "" for none.
    """

    models: tuple[str, ...] = ()
    data: str = ""
    config: str | None = None
    split: str | None = None
    text_column: str | None = None
    text_template: str | None = None
    label_column: str | None = None
    label_map: str | dict[str, str] | None = None
    encoding: str | None = None
    quoting: bool | None = None
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

    def __post_init__(self) -> None:
        if not self.models:
            raise InputError("no model given; pass --model with a folder in Hugging Face layout, or run files to show")
        if not self.data:
            raise InputError("no data given; pass --data with a file, a folder, or a dataset's name on the Hub")
        if self.limit is not None and self.limit < 1:
            raise InputError(f"limit is {self.limit}; it must be at least 1, or none for all texts")


def benchmark(
    files: Annotated[
        list[str] | None, typer.Argument(metavar="[RUN]...", help="Run files to print, or to compare with --compare.")
    ] = None,
    compare: Annotated[
        bool,
        cli_option("--compare", help="Compare two runs by model name, or the models of one run with its first."),
    ] = False,
    fail_if_slower: Annotated[
        float | None,
        cli_option(
            metavar="RATIO",
            help="With --compare: exit with status 1 if a median latency grew beyond RATIO, such as 1.1.",
        ),
    ] = None,
    model: Annotated[
        list[str] | None,
        cli_option("--model", "-m", metavar="[NAME=]MODEL", help="Model to measure: a folder or a Hub id; repeatable."),
    ] = None,
    data: Annotated[str, cli_option(help="Labeled texts: a file, a folder or a Hub id.")] = "",
    data_config: DataConfig = None,
    split: Annotated[str, cli_option(help="Split of the data, such as validation.")] = "",
    text_column: TextColumn = None,
    text_template: TextTemplate = None,
    label_column: LabelColumn = None,
    label_map: LabelMap = None,
    encoding: Encoding = None,
    quoting: Quoting = None,
    limit: Annotated[int | None, cli_option(help="Use at most N texts, evenly spaced (default: all).")] = None,
    framework: Framework = "",
    out_of_scope: Annotated[str, cli_option(help="Label of out-of-scope texts (default: none).")] = "",
    threshold: Annotated[
        float | None, cli_option(help="Count answers with a lower score as out of scope (default: no threshold).")
    ] = None,
    queries: Annotated[int | None, cli_option(help="Texts to time one at a time (default 200).")] = None,
    repeats: Annotated[int | None, cli_option(help="Timings per text (default 1).")] = None,
    batch_size: Annotated[int | None, cli_option(help="Batch size for accuracy and throughput (default 32).")] = None,
    memory: Annotated[
        bool | None,
        cli_option("--memory/--no-memory", help="Measure memory in a separate process per model (default: yes)."),
    ] = None,
    output: Annotated[str, cli_option(help="Run file to write; records of the same name are replaced.")] = "",
    plot: Annotated[str, cli_option(help="Plot accuracy against latency to a .png, .svg or .pdf file.")] = "",
    markdown: Annotated[bool, cli_option("--markdown", help="Print tables in Markdown.")] = False,
    config: SettingsFile = "",
    option: Annotated[
        list[str] | None,
        cli_option(
            "--option", "-o", metavar="KEY=VALUE", help="Any other setting, such as pipeline.max_length=64; repeatable."
        ),
    ] = None,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Measure classifiers, or print and compare earlier runs."""
    from duonlp.cli.settings import settings_from

    flags = {
        "models": model or None, "data": data or None, "config": data_config, "split": split or None,
        "text_column": text_column or None, "text_template": with_line_ends(text_template or "") or None,
        "label_column": label_column or None, "label_map": label_map or None,
        "encoding": encoding or None, "quoting": quoting, "limit": limit, "framework": framework or None,
        "out_of_scope": out_of_scope or None, "threshold": threshold, "queries": queries, "repeats": repeats,
        "batch_size": batch_size, "memory": memory, "output": output or None, "plot": plot or None,
    }  # fmt: skip
    if fail_if_slower is not None and not compare:
        raise InputError("--fail-if-slower needs --compare; pass both, and the run files")
    if fail_if_slower is not None and fail_if_slower <= 0:
        raise InputError(f"--fail-if-slower is {fail_if_slower}; it must be a ratio above 0, such as 1.1")
    if files or compare:
        measuring = [name for name, value in flags.items() if value is not None and name != "plot"]
        if measuring or config or option:
            raise InputError(
                f"run files and --compare print earlier measurements, and {measuring[0] if measuring else '--config or --option'}"
                " is for measuring; give one or the other"
            )
        if compare:
            _compare(files or [], fail_if_slower, plot, as_json, markdown)
        else:
            _show(files or [], plot, as_json, markdown)
        return
    settings = settings_from(BenchmarkSettings, config, flags, option or [], what=COMMAND)
    with quiet_stdout():
        records, all_records = measure(settings)
    if as_json:
        print_json({"records": [record.to_dict() for record in records], "output": settings.output or None})
    else:
        _print(all_records, markdown)
        for file in filter(None, (settings.output, settings.plot)):
            print(f"wrote {file}")


def measure(settings: BenchmarkSettings) -> tuple[list["BenchmarkRecord"], list["BenchmarkRecord"]]:
    """Measure the models in turns, and write the run file and the plot.

    Memory is measured last, after everything else is written.

    Returns:
        The models' records, and all records in the run file.

    Raises:
        InputError: Settings or data are invalid; as far as possible before a model is loaded.
        CheckpointError: A checkpoint cannot be found or read.
        MissingExtraError: A library is not installed.
    """
    from duonlp.benchmark.performance import PerformanceBenchmark, benchmark_together
    from duonlp.benchmark.record import check_run_file, write_records
    from duonlp.benchmark.report import plot_records
    from duonlp.checkpoints.checkpoint import open_checkpoint
    from duonlp.export import find_exported
    from duonlp.training.settings_file import as_table
    from duonlp.util.pictures import check_picture_file, require_matplotlib

    models = model_names(settings.models)
    if settings.output:
        check_run_file(Path(settings.output))
    if settings.plot:
        check_picture_file(Path(settings.plot))
        require_matplotlib("records are plotted")
    texts = read_texts(settings)
    PerformanceBenchmark(str, texts, "check", **_options(settings))  # raises before a model is loaded
    package, framework = load_package(settings.framework)
    options = {"truncation": True, **settings.pipeline}
    print(f"measuring {', '.join(models)} on {len(texts.texts)} texts", file=sys.stderr)
    benchmarks = []
    for name, model in models.items():
        exported = find_exported(model)
        folder = open_checkpoint(model).folder if exported is None else exported.folder
        pipeline = package.pipeline("text-classification", folder if exported is None else model, **options)
        benchmarks.append(
            PerformanceBenchmark(
                pipeline, texts, name, folder=folder, framework=framework, model=model, **_options(settings)
            )
        )
    table = as_table(settings)
    # This process holds all models, so its memory says nothing about one; a child process per model does, and runs after
    # the timing.
    records = [replace(record, memory=None, settings=table) for record in benchmark_together(benchmarks)]
    all_records = write_records(settings.output, records) if settings.output else records
    if settings.memory:
        print("measuring memory, in a separate process per model", file=sys.stderr)
        records = [
            replace(record, memory=_memory(model, framework, settings.batch_size, options))
            for model, record in zip(benchmarks, records, strict=True)
        ]
        all_records = write_records(settings.output, records) if settings.output else records
    if settings.plot:
        plot_records(all_records, settings.plot, reference=all_records[0].name if len(all_records) > 1 else None)
    return records, all_records


def _memory(
    benchmark: "PerformanceBenchmark", framework: str, batch_size: int, options: dict[str, Any]
) -> "Memory | None":
    """Measure the memory of a process with one model; warn and return None if that fails, to keep the other figures."""
    from duonlp.benchmark.memory import memory_alone

    try:
        return memory_alone(framework, str(benchmark.folder), benchmark.queries, batch_size=batch_size, options=options)
    except InputError as error:
        warnings.warn(f"{benchmark.name} is recorded without its memory: {error}", stacklevel=2)
        return None


def _options(settings: BenchmarkSettings) -> dict[str, Any]:
    names = "out_of_scope", "threshold", "queries", "repeats", "warm_up", "batch_size"
    return {name: getattr(settings, name) for name in names}


def read_texts(settings: BenchmarkSettings) -> "LabelledTexts":
    """Read the labeled texts of a benchmark."""
    from duonlp.data.labelled.texts import read_labelled_texts

    return read_labelled_texts(
        settings.data, settings.split, config=settings.config, text_column=settings.text_column,
        text_template=settings.text_template, label_column=settings.label_column, label_map=settings.label_map,
        encoding=settings.encoding, quoting=settings.quoting, limit=settings.limit,
    )  # fmt: skip


def model_names(models: Sequence[str]) -> dict[str, str]:
    """Map names to models: the NAME of NAME=MODEL, or a path's last part other than `best`.

    Raises:
        InputError: A name is empty, or two models have the same name.
    """
    names: dict[str, str] = {}
    for argument in models:
        name, equals, model = argument.partition("=")
        if not equals or Path(argument).exists():
            model = argument
            is_folder = Path(argument).is_dir()
            parts = [part for part in Path(argument).resolve().parts if part != "best"] if is_folder else []
            name = parts[-1] if parts else argument
        if not name.strip() or not model:
            raise InputError(
                f"--model {argument!r} is not NAME=MODEL; write for example --model teacher=runs/teacher/best"
            )
        if name in names:
            raise InputError(f"two models are named {name!r}; name them with --model NAME=MODEL")
        names[name] = model
    return names


def _show(files: Sequence[str], plot: str, as_json: bool, markdown: bool) -> None:
    from duonlp.benchmark.record import read_records
    from duonlp.benchmark.report import plot_records

    records = [record for file in files for record in read_records(file)]
    if plot:
        plot_records(records, plot, reference=records[0].name if len(records) > 1 else None)
    if as_json:
        print_json({"records": [record.to_dict() for record in records]})
    else:
        _print(records, markdown)


def _compare(files: Sequence[str], fail_if_slower: float | None, plot: str, as_json: bool, markdown: bool) -> None:
    from duonlp.benchmark.comparison import compare_runs
    from duonlp.benchmark.record import read_records
    from duonlp.benchmark.report import print_comparison, to_markdown

    if plot:
        raise InputError("--compare cannot plot; leave out --plot")
    if len(files) not in (1, 2):
        raise InputError(
            f"--compare takes one run file or two, and got {len(files)}; write --compare before.json after.json"
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
            f"duonlp: a median latency grew by a factor of {comparison.slowest():.3f}, above {fail_if_slower:g}",
            file=sys.stderr,
        )
        raise typer.Exit(1)


def _print(records: Sequence["BenchmarkRecord"], markdown: bool) -> None:
    from duonlp.benchmark.report import print_records, to_markdown

    if markdown:
        print(to_markdown(records))
    else:
        print_records(records)
