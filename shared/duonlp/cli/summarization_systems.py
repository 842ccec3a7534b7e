"""The systems that ``duonlp evaluate summarization`` compares: models, baselines and prediction files."""

import re
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from duonlp.cli.common import PIPELINE_OPTIONS, suggest_options
from duonlp.errors import InputError
from duonlp.util.frameworks import load_package
from duonlp.util.suggestions import nearest

if TYPE_CHECKING:
    from duonlp.data.pairs.summaries import Pair
    from duonlp.typing import Engine

LEAD = re.compile(r"lead-([1-9]\d*)")
ORDER = ("file", "lead", "tldr", "model")
"""Kinds of systems, fastest first."""


@dataclass(frozen=True)
class Settings:
    """Settings of ``duonlp evaluate summarization``.

    Attributes:
        data: Documents and summaries, as `read_pairs` takes them; so are `split`, `document_field`, `summary_field`,
            `encoding` and `quoting`. Prediction files have the same encoding or UTF-8.
        limit: Evaluate only the first N pairs; 0 for all.
        models: Checkpoints, run with `options`.
        baselines: "lead-N", or "tldr", which runs `tldr_model` with `tldr_options`.
        predictions: NAME=FILE for each prediction file.
        framework: "tf" or "jax"; "" for the installed one.
        stemmer: Whether ROUGE compares stems.
        sentences: Language of the summaries, to split them into sentences for ROUGE-Lsum; "" takes lines as sentences. The
            baselines split documents by it too, with "" as English.
        confidence: Coverage of the intervals.
        resamples: Bootstrap resamples.
        seed: Seed of the resamples, and of models that sample unless their options have one.
        output: Folder for results; "" for none.
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
    encoding: str = ""
    quoting: bool | None = None

    def __post_init__(self) -> None:
        if not self.data:
            raise InputError("no data given; pass --data with a file, a folder, or a dataset's name on the Hub")
        if self.limit < 0:
            raise InputError(f"--limit is {self.limit}; it must be at least 0, where 0 is no limit")
        if not (self.models or self.baselines or self.predictions):
            raise InputError("nothing to evaluate; pass --model, --baseline lead-3, or --predictions NAME=FILE")
        if self.options and not self.models:
            raise InputError("--option is for models; pass --model, or --tldr-option for the TL;DR baseline")
        if ("tldr" in self.baselines) != bool(self.tldr_model):
            raise InputError("--baseline tldr and --tldr-model, a model that continues texts, go together; pass both")
        if self.tldr_options and not self.tldr_model:
            raise InputError("--tldr-option is for the TL;DR baseline; pass --baseline tldr and --tldr-model")


@dataclass(frozen=True)
class System:
    """A system that summarizes.

    Attributes:
        name: The name in tables.
        kind: "model", "tldr", "lead" or "file".
        source: The checkpoint, the number of sentences or the prediction file.
    """

    name: str
    kind: str
    source: str


def list_systems(settings: Settings) -> list[System]:
    """Return the systems to evaluate: models, then prediction files, then baselines.

    Raises:
        InputError: A baseline is unknown, predictions have no name, or two systems have the same name.
    """
    systems = [System(name, "model", model) for model, name in model_names(settings.models).items()]
    for argument in settings.predictions:
        name, equals, file = argument.partition("=")
        if not (equals and name.strip() and file):
            raise InputError(
                f"--predictions {argument!r} is not NAME=FILE; write for example --predictions mine=out.jsonl"
            )
        systems.append(System(name.strip(), "file", file))
    for baseline in settings.baselines:
        match = LEAD.fullmatch(baseline)
        if not match and baseline != "tldr":
            hint = nearest(baseline, ("lead-3", "tldr"))
            raise InputError(f"--baseline {baseline!r} is neither lead-N, such as lead-3, nor tldr{hint}")
        lead = System(baseline, "lead", match[1]) if match else None
        systems.append(lead or System(baseline, "tldr", settings.tldr_model))
    names = [system.name for system in systems]
    for name in names:
        if names.count(name) > 1:
            raise InputError(f"two systems are named {name!r}; give each once, and predictions another name")
    return systems


def model_names(models: Sequence[str]) -> dict[str, str]:
    """Map models to names: the last part of a folder's path if that is unique, else the argument.

    Raises:
        InputError: A model is given twice.
    """
    names = {}
    for model in models:
        if model in names:
            raise InputError(f"--model {model!r} is given twice; give it once")
        names[model] = Path(model).resolve().name if Path(model).is_dir() else model
    short = list(names.values())
    return {model: name if short.count(name) == 1 else model for model, name in names.items()}


def run_systems(
    systems: Sequence[System],
    settings: Settings,
    pairs: Sequence["Pair"],
    predictions: dict[str, list[str]],
    output: Path | None,
    files: dict[str, str],
) -> tuple[dict[str, list[str]], dict[str, float], str | None]:
    """Run every system on the documents, fastest kind first.

    Args:
        systems: The systems, in the order of the report.
        settings: Their settings.
        pairs: The documents.
        predictions: Texts of the systems of kind "file".
        output: Folder for predictions, each written as soon as its system is done; None for none.
        files: System name to a file below `output`.

    Returns:
        Texts by system in the order of `systems`, seconds by system that ran, and the framework of the models (None
        if no model ran).
    """
    from duonlp.metrics.predictions import write_predictions

    documents = [pair.document for pair in pairs]
    texts, seconds = dict(predictions), {}
    package, framework = None, None
    for system in sorted(systems, key=lambda system: ORDER.index(system.kind)):
        if system.kind in ("model", "tldr") and package is None:
            package, framework = load_package(settings.framework)
        start = time.monotonic()
        if system.kind == "lead":
            texts[system.name] = lead_summaries(int(system.source), settings, documents)
        elif package is not None and system.kind == "tldr":
            texts[system.name] = tldr_summaries(package, settings, documents)
        elif package is not None and system.kind == "model":
            texts[system.name] = model_summaries(package, system.source, settings, documents)
        if system.kind != "file":
            seconds[system.name] = round(time.monotonic() - start, 3)
        if output:
            write_predictions(output / files[system.name], [pair.id for pair in pairs], texts[system.name])
    return {system.name: texts[system.name] for system in systems}, seconds, framework


def lead_summaries(sentences: int, settings: Settings, documents: Sequence[str]) -> list[str]:
    """Return the first sentences of each document."""
    from duonlp.evaluation.baselines import lead
    from duonlp.util.console import Progress

    texts = []
    with Progress(len(documents), None, f"lead-{sentences}") as bar:
        for document in documents:
            texts.append(lead(document, sentences, language=settings.sentences or "en"))
            bar.advance(1)
    return texts


def tldr_summaries(package: "Engine", settings: Settings, documents: Sequence[str]) -> list[str]:
    """Return what a decoder-only model writes after "TL;DR:"."""
    from duonlp.evaluation.baselines import tldr

    pipeline_options = {name: value for name, value in settings.tldr_options.items() if name in PIPELINE_OPTIONS}
    options = {name: value for name, value in settings.tldr_options.items() if name not in PIPELINE_OPTIONS}
    if options.get("do_sample", True):  # tldr's default
        options = {"seed": settings.seed, **options}
    options: dict[str, Any] = {"language": settings.sentences or "en", **options}
    with suggest_options("text-generation", settings.tldr_options):
        pipe = package.pipeline("text-generation", settings.tldr_model, **pipeline_options)
        return tldr(pipe, list(documents), **options)


def model_summaries(package: "Engine", model: str, settings: Settings, documents: Sequence[str]) -> list[str]:
    """Return a checkpoint's summary of each document, the first if it returns several sequences."""
    options = settings.options
    if options.get("do_sample"):
        options = {"seed": settings.seed, **options}
    with suggest_options("summarization", options):
        results = package.pipeline("summarization", model, **options)(list(documents))
    return [(result if isinstance(result, dict) else result[0])["summary_text"] for result in results]
