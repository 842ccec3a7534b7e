"""`duonlp evaluate summarization`: models, baselines and files of summaries against references, with intervals."""

import functools
import hashlib
import importlib.metadata
import importlib.util
import json
import os
import platform
import re
import sys
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated, Any, TextIO

import typer

from duonlp.cli.common import (
    PIPELINE_OPTIONS,
    Debug,
    Framework,
    Json,
    option_hint,
    parsed_options,
    plain_value,
    print_json,
)
from duonlp.errors import InputError
from duonlp.util.frameworks import load_package, quiet_stdout
from duonlp.util.suggestions import nearest

LEAD = re.compile(r"lead-([1-9]\d*)")
LIBRARIES = ("numpy", "rouge-score", "nltk", "sacrebleu", "sentencex")
MODEL_LIBRARIES = {
    "tf": ("tensorflow", "tensorflow-cpu", "keras", "transformers", "tokenizers"),
    "jax": ("jax", "flax", "transformers", "tokenizers"),
}
"""Whose versions are written down, for a framework that a model ran in."""

REMEDIES = (
    (", or pass report=CleaningReport() to count and drop such records", ", or remove it"),
    ("pass kind", "rename it"),
    ("with document_field", "with --document-field"),
    ("with summary_field", "with --summary-field"),
)
"""What read_pairs tells a caller to do, and what a person at the command line can."""


@dataclass(frozen=True)
class Settings:
    """What was asked for on the command line.

    data, split, document_field, summary_field: what `read_pairs` reads. limit: only so many of the first pairs, 0 for all.
    models: checkpoints, run with `options`. baselines: "lead-N", or "tldr" by tldr_model, run with `tldr_options`.
    predictions: "NAME=FILE". sentences: a language, whose sentences go on lines for ROUGE-Lsum; "" leaves lines alone.
    The baselines split sentences by it too, in English for "". seed: of the resamples, and of models that sample where
    their options have none.
    """

    data: str
    split: str = ""
    document_field: str = ""
    summary_field: str = ""
    limit: int = 0
    models: tuple[str, ...] = ()
    baselines: tuple[str, ...] = ()
    predictions: tuple[str, ...] = ()
    tldr_model: str = ""
    options: dict[str, Any] = field(default_factory=dict)
    tldr_options: dict[str, Any] = field(default_factory=dict)
    framework: str = ""
    stemmer: bool = True
    sentences: str = "en"
    confidence: float = 0.95
    resamples: int = 1000
    seed: int = 0
    output: str = ""

    def __post_init__(self):
        if not self.data:
            raise InputError("no data given; pass --data with a file, a folder, or a dataset's name on the Hub")
        if self.limit < 0:
            raise InputError(f"--limit is {self.limit}; it must be at least 0, which is for all")
        if not (self.models or self.baselines or self.predictions):
            raise InputError("nothing to evaluate; pass --model, --baseline lead-3, or --predictions NAME=FILE")
        if self.options and not self.models:
            raise InputError("--option is for models; pass --model, or --tldr-option for the TL;DR baseline")
        if ("tldr" in self.baselines) != bool(self.tldr_model):
            raise InputError("--baseline tldr and --tldr-model, a model that continues texts, go together; pass both")
        if self.tldr_options and not self.tldr_model:
            raise InputError("--tldr-option is for the TL;DR baseline; pass --baseline tldr and --tldr-model")


def summarization(
    data: Annotated[
        str, typer.Option(help="A file or folder of documents and summaries, or a dataset of the Hub.")
    ] = "",
    split: Annotated[str, typer.Option(help="train, validation or test, where the data has several.")] = "",
    document_field: Annotated[str, typer.Option(help="The column of the document; by default a usual name.")] = "",
    summary_field: Annotated[str, typer.Option(help="The column of the summary; by default a usual name.")] = "",
    limit: Annotated[int, typer.Option(help="Only so many of the first examples; 0 for all.")] = 0,
    model: Annotated[
        list[str] | None, typer.Option("--model", "-m", help="A folder in Hugging Face layout, or a Hub id; repeat it.")
    ] = None,
    framework: Framework = "",
    baseline: Annotated[
        list[str] | None, typer.Option(help="lead-3 (or another number of sentences), or tldr; repeat it.")
    ] = None,
    tldr_model: Annotated[str, typer.Option(help='The model that continues "TL;DR:", for --baseline tldr.')] = "",
    predictions: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME=FILE", help="Summaries of another system: a text a line, or JSONL; repeat it."),
    ] = None,
    option: Annotated[
        list[str] | None,
        typer.Option("--option", "-o", metavar="KEY=VALUE", help="An option of the models' generation; repeat it."),
    ] = None,
    tldr_option: Annotated[
        list[str] | None, typer.Option(metavar="KEY=VALUE", help="The same for the TL;DR baseline; repeat it.")
    ] = None,
    stemmer: Annotated[bool, typer.Option(help="ROUGE compares stems of words.")] = True,
    sentences: Annotated[
        str, typer.Option(help='Language to split sentences by, for ROUGE-Lsum; "" takes lines for sentences.')
    ] = "en",
    confidence: Annotated[float, typer.Option(help="Of the intervals.")] = 0.95,
    resamples: Annotated[int, typer.Option(help="Of the examples, for intervals and p-values.")] = 1000,
    seed: Annotated[int, typer.Option(help="Of the random numbers: the same result again.")] = 0,
    output: Annotated[str, typer.Option(help="Folder for the predictions, scores.json and scores.png.")] = "",
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Score summaries by ROUGE and BLEU, and say which systems differ by more than chance."""
    settings = Settings(
        data, split, document_field, summary_field, limit, tuple(model or ()), tuple(baseline or ()),
        tuple(predictions or ()), tldr_model, parsed_options(option or []), parsed_options(tldr_option or []),
        framework, stemmer, sentences, confidence, resamples, seed, output,
    )  # fmt: skip
    with quiet_stdout():
        report, comparison = run(settings)
    if as_json:
        print_json(report)
    else:
        print_report(report, comparison, sys.stdout)


@dataclass(frozen=True)
class System:
    """Something that summarizes. kind: "model", "tldr", "lead" or "file"; source: its checkpoint, number or file."""

    name: str
    kind: str
    source: str


def plan(settings: Settings) -> list[System]:
    """The systems that were asked for, models first.

    Raises:
        InputError: an unknown baseline, predictions without a name, or two systems of one name.
    """
    systems = [System(name, "model", model) for model, name in model_names(settings.models).items()]
    for given in settings.predictions:
        name, equals, file = given.partition("=")
        if not (equals and name.strip() and file):
            raise InputError(
                f"--predictions {given!r} is not NAME=FILE; write for example --predictions mine=out.jsonl"
            )
        systems.append(System(name.strip(), "file", file))
    for given in settings.baselines:
        number = LEAD.fullmatch(given)
        if not number and given != "tldr":
            close = nearest(given, ("lead-3", "tldr"))
            raise InputError(f"--baseline {given!r} is neither lead-N, such as lead-3, nor tldr{close}")
        systems.append(System(given, "lead", number[1]) if number else System(given, "tldr", settings.tldr_model))
    names = [system.name for system in systems]
    for name in names:
        if names.count(name) > 1:
            raise InputError(f"two systems are named {name!r}; name each once, and predictions by a name of their own")
    return systems


def model_names(models: Sequence[str]) -> dict[str, str]:
    """What a table calls models: the last part of a folder's path where that tells them apart, else what was given.

    Raises:
        InputError: a model twice.
    """
    names = {}
    for model in models:
        if model in names:
            raise InputError(f"--model {model!r} is given twice; give it once")
        names[model] = Path(model).resolve().name if Path(model).is_dir() else model
    short = list(names.values())
    return {model: name if short.count(name) == 1 else model for model, name in names.items()}


def run(settings: Settings) -> tuple[dict[str, Any], Any]:
    """Reads the data, lets every system summarize it, and compares them.

    Returns:
        what scores.json holds, and the Comparison.

    Raises:
        InputError: whatever is wrong in the settings or the data; what can be checked is, before a model runs.
        CheckpointError: a checkpoint cannot be found or read.
        MissingExtraError: a library is not installed.
    """
    from duonlp.data.pairs.summaries import read_pairs
    from duonlp.metrics.bleu import Bleu
    from duonlp.metrics.bootstrap import check_settings
    from duonlp.metrics.comparison import check_resamples, check_systems, compare
    from duonlp.metrics.predictions import read_predictions, write_predictions
    from duonlp.metrics.rouge import Rouge
    from duonlp.pipelines.pipeline import Progress

    check_settings(settings.confidence, settings.resamples, settings.seed)
    systems = plan(settings)
    check_resamples(len(systems), settings.resamples)
    metrics = [Rouge(stemmer=settings.stemmer, sentences=settings.sentences or None), Bleu()]
    output = check_output(settings.output)
    try:
        pairs = list(
            read_pairs(
                settings.data, settings.split or None, document_field=settings.document_field or None,
                summary_field=settings.summary_field or None, limit=settings.limit or None,
            )
        )  # fmt: skip
    except InputError as error:
        raise InputError(functools.reduce(lambda text, words: text.replace(*words), REMEDIES, str(error))) from error
    if not pairs:
        raise InputError(f"there is no example in {settings.data!r}; give documents with their summaries")
    ids, documents = [pair.id for pair in pairs], [pair.document for pair in pairs]
    references = [list(pair.summaries) for pair in pairs]
    check_systems({system.name: [""] * len(pairs) for system in systems}, references)
    texts: dict[str, list[str]] = {
        system.name: read_predictions(system.source, ids, limited=bool(settings.limit))
        for system in systems if system.kind == "file"
    }  # fmt: skip
    files, seconds, framework = file_names([system.name for system in systems]), {}, None
    if output:
        make_output(output)
    for system in sorted(systems, key=lambda system: ("file", "lead", "tldr", "model").index(system.kind)):
        if system.kind in ("model", "tldr") and framework is None:
            package, framework = load_package(settings.framework)
        start = time.monotonic()
        if system.kind == "lead":
            texts[system.name] = lead_summaries(int(system.source), settings, documents)
        elif system.kind == "tldr":
            texts[system.name] = tldr_summaries(package, settings, documents)
        elif system.kind == "model":
            texts[system.name] = model_summaries(package, system.source, settings, documents)
        if system.kind != "file":
            seconds[system.name] = round(time.monotonic() - start, 3)
        if output:  # at once: what a model took hours for is there, whatever happens to the next one
            write_predictions(output / files[system.name], ids, texts[system.name])
    ordered = {system.name: texts[system.name] for system in systems}
    with Progress(len(pairs) * len(systems) * len(metrics), None, "scoring") as bar:
        comparison = compare(
            ordered, references, metrics, confidence=settings.confidence, resamples=settings.resamples,
            seed=settings.seed, progress=bar.advance,
        )  # fmt: skip
    report = {
        "data": {"source": settings.data, "split": settings.split or None, "sha256": digest(pairs)},
        "systems": {
            system.name: {
                "kind": system.kind, "source": system.source, "words": mean_words(ordered[system.name]),
                "seconds": seconds.get(system.name), "file": files[system.name] if output else None,
            }
            for system in systems
        },
        "reference_words": mean_words([text for several in references for text in several]),
        **comparison.to_dict(),
        "framework": framework,
        "command": asdict(settings),
        "versions": versions(framework),
    }  # fmt: skip
    if output:
        write_scores(output, report, comparison, settings)
    return report, comparison


def lead_summaries(sentences: int, settings: Settings, documents: Sequence[str]) -> list[str]:
    """The first sentences of each document."""
    from duonlp.evaluation.baselines import lead
    from duonlp.pipelines.pipeline import Progress

    texts = []
    with Progress(len(documents), None, f"lead-{sentences}") as bar:
        for document in documents:
            texts.append(lead(document, sentences, language=settings.sentences or "en"))
            bar.advance(1)
    return texts


def tldr_summaries(package, settings: Settings, documents: Sequence[str]) -> list[str]:
    """What a decoder-only model writes after "TL;DR:"."""
    from duonlp.evaluation.baselines import tldr

    making = {name: value for name, value in settings.tldr_options.items() if name in PIPELINE_OPTIONS}
    calling = {name: value for name, value in settings.tldr_options.items() if name not in PIPELINE_OPTIONS}
    if calling.get("do_sample", True):  # as tldr does unless told otherwise
        calling = {"seed": settings.seed, **calling}
    calling = {"language": settings.sentences or "en", **calling}

    def results() -> list[str]:
        return tldr(package.pipeline("text-generation", settings.tldr_model, **making), list(documents), **calling)

    return told(results, settings.tldr_options, "text-generation")


def model_summaries(package, model: str, settings: Settings, documents: Sequence[str]) -> list[str]:
    """What a checkpoint makes of each document; the first of several sequences."""
    options = settings.options
    if options.get("do_sample"):
        options = {"seed": settings.seed, **options}

    def results() -> list[str]:
        found = package.pipeline("summarization", model, **options)(list(documents))
        return [(each if isinstance(each, dict) else each[0])["summary_text"] for each in found]

    return told(results, options, "summarization")


def told(results: Callable[[], list[str]], options: dict[str, Any], task: str) -> list[str]:
    """The results; an option that the task does not have is an error that names the nearest one."""
    try:
        return results()
    except InputError as error:
        from duonlp.tasks import get_task

        raise InputError(f"{error}{option_hint(error, options, get_task(task))}") from error


def check_output(output: str) -> Path | None:
    """The folder that results go to; None for none.

    Raises:
        InputError: it has the results of another run, or cannot be written to.
    """
    if not output:
        return None
    folder = Path(output)
    if (folder / "scores.json").exists():
        raise InputError(f"--output {output!r} has a scores.json already; give another folder, or delete it")
    nearest = next(parent for parent in (folder, *folder.resolve().parents) if parent.exists())
    if not nearest.is_dir() or not os.access(nearest, os.W_OK):
        raise InputError(f"--output is {output!r}; give a folder that can be written to")
    if not importlib.util.find_spec("matplotlib"):
        warnings.warn(
            'there will be no scores.png, for matplotlib is missing; pip install "duonlp[bench]"', stacklevel=2
        )
    return folder


def make_output(folder: Path) -> None:
    """The folder, before a model runs for hours.

    Raises:
        InputError: it cannot be made.
    """
    try:
        (folder / "predictions").mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(
            f"--output is {str(folder)!r}: {error.strerror}; give a folder that can be written to"
        ) from None


def file_names(names: Sequence[str]) -> dict[str, str]:
    """A file for each system's predictions, below the output folder: its name with what no file name may have replaced."""
    files: dict[str, str] = {}
    for name in names:
        plain = re.sub(r"[^\w.+-]+", "_", name).strip("._")[:80] or "system"
        number, file = 1, f"predictions/{plain}.jsonl"
        while file.lower() in {other.lower() for other in files.values()}:
            number += 1
            file = f"predictions/{plain}-{number}.jsonl"
        files[name] = file
    return files


def write_scores(output: Path, report: dict[str, Any], comparison, settings: Settings) -> None:
    """The picture, and last scores.json, which says that all is there."""
    from duonlp.metrics.predictions import write_atomically

    if importlib.util.find_spec("matplotlib"):
        comparison.plot(output / "scores.png", f"{Path(settings.data).name} {settings.split}".strip())
    write_atomically(output / "scores.json", json.dumps(report, indent=2, ensure_ascii=False, default=plain_value) + "\n")


def digest(pairs) -> str:
    """SHA-256 of the examples: whether another run had the same."""
    found = hashlib.sha256()
    for pair in pairs:
        found.update(json.dumps([pair.document, *pair.summaries]).encode())
    return found.hexdigest()


def mean_words(texts: Sequence[str]) -> float:
    """Words of a text, on average: ROUGE's F1 depends on the length."""
    return round(sum(len(text.split()) for text in texts) / len(texts), 1)


def versions(framework: str | None) -> dict[str, str]:
    """Of this library, of Python, and of those that the scores come from."""
    from duonlp import __version__

    found = {"duonlp": __version__, "python": platform.python_version()}
    for name in (*LIBRARIES, *MODEL_LIBRARIES.get(framework or "", ())):
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def print_report(report: dict[str, Any], comparison, out: TextIO) -> None:
    """The tables, how long the summaries are, and where the results lie."""
    from rich.console import Console

    console = Console(file=out)
    console.print(comparison.table())
    lengths = ", ".join(f"{name} {system['words']:g}" for name, system in report["systems"].items())
    words = f"\nwords of a summary: references {report['reference_words']:g}, {lengths}"
    console.print(words, markup=False, highlight=False)
    if report["command"]["output"]:
        console.print(f"All results are in {report['command']['output']}", markup=False, highlight=False)
