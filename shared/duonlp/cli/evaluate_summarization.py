"""``duonlp evaluate summarization``: models, baselines and prediction files against references, with intervals."""

import contextlib
import hashlib
import importlib.metadata
import importlib.util
import json
import os
import platform
import re
import sys
import warnings
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TextIO

from duonlp.cli.common import Debug, Framework, Json, cli_option, parsed_options, print_json
from duonlp.cli.summarization_systems import Settings, System, list_systems, run_systems
from duonlp.cli.training import Encoding, Quoting
from duonlp.errors import InputError
from duonlp.util.console import plain_console
from duonlp.util.files import locked_folder
from duonlp.util.frameworks import quiet_stdout
from duonlp.util.json_text import to_json
from duonlp.util.reading import check_encoding
from duonlp.util.tokenization import restore_line_breaks

if TYPE_CHECKING:
    from duonlp.data.pairs.summaries import Pair
    from duonlp.metrics.comparison import Comparison

LIBRARIES = ("numpy", "rouge-score", "nltk", "sacrebleu", "sentencex")
"""Libraries whose versions are always recorded."""
MODEL_LIBRARIES = {
    "tf": ("tensorflow", "tensorflow-cpu", "keras", "transformers", "tokenizers"),
    "jax": ("jax", "flax", "transformers", "tokenizers"),
}
"""Libraries whose versions are recorded if a model ran, by framework."""


def summarization(
    data: Annotated[str, cli_option(help="Documents with summaries: a file, a folder or a Hub id (required).")] = "",
    split: Annotated[str, cli_option(help="Split of the data: train, validation or test, if it has several.")] = "",
    document_field: Annotated[str, cli_option(help="Document column (default: the first with a usual name).")] = "",
    summary_field: Annotated[str, cli_option(help="Summary column (default: the first with a usual name).")] = "",
    encoding: Encoding = None,
    quoting: Quoting = None,
    limit: Annotated[int, cli_option(help="Evaluate only the first N examples (default: all).")] = 0,
    model: Annotated[
        list[str] | None,
        cli_option("--model", "-m", help="Checkpoint: a folder in Hugging Face layout or a Hub id; repeatable."),
    ] = None,
    framework: Framework = "",
    baseline: Annotated[
        list[str] | None, cli_option(help="lead-N, the first N sentences, such as lead-3, or tldr; repeatable.")
    ] = None,
    tldr_model: Annotated[str, cli_option(help='Model that continues "TL;DR:", for --baseline tldr.')] = "",
    predictions: Annotated[
        list[str] | None,
        cli_option(metavar="NAME=FILE", help="Summaries of another system, one per line or JSONL; repeatable."),
    ] = None,
    option: Annotated[
        list[str] | None,
        cli_option("--option", "-o", metavar="KEY=VALUE", help="Any other option of the models' pipeline; repeatable."),
    ] = None,
    tldr_option: Annotated[
        list[str] | None,
        cli_option(metavar="KEY=VALUE", help="Any other option of the TL;DR baseline's pipeline; repeatable."),
    ] = None,
    stemmer: Annotated[
        bool, cli_option("--stemmer/--no-stemmer", help="Compare word stems in ROUGE (default: yes).")
    ] = True,
    sentences: Annotated[
        str,
        cli_option(help='Language for splitting sentences in ROUGE-Lsum; "" takes lines as sentences (default en).'),
    ] = "en",
    confidence: Annotated[float, cli_option(help="Confidence level of the intervals (default 0.95).")] = 0.95,
    resamples: Annotated[int, cli_option(help="Bootstrap resamples for intervals and p-values (default 1000).")] = 1000,
    seed: Annotated[int, cli_option(help="Seed for resampling and for models that sample (default 0).")] = 0,
    output: Annotated[str, cli_option(help="Folder for the predictions, scores.json and scores.png.")] = "",
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Score summaries with ROUGE and BLEU and test which systems differ significantly."""
    settings = Settings(
        data, split, document_field, summary_field, limit, tuple(model or ()), tuple(baseline or ()),
        tuple(predictions or ()), tldr_model, parsed_options(option or []), parsed_options(tldr_option or []),
        framework, stemmer, sentences, confidence, resamples, seed, output, encoding or "", quoting,
    )  # fmt: skip
    with quiet_stdout():
        report, comparison = evaluate_summaries(settings)
    if as_json:
        print_json(report)
    else:
        print_report(report, comparison, sys.stdout)


def evaluate_summaries(settings: Settings) -> tuple[dict[str, Any], "Comparison"]:
    """Read the data, let every system summarize it, and compare the results.

    Returns:
        The report written to scores.json, and the Comparison.

    Raises:
        InputError: Settings or data are invalid; as far as possible before a model runs.
        CheckpointError: A checkpoint cannot be found or read.
        MissingExtraError: A library is not installed.
    """
    from duonlp.metrics.bootstrap import check_settings
    from duonlp.metrics.comparison import check_resamples, check_systems
    from duonlp.metrics.rouge import Rouge

    check_settings(settings.confidence, settings.resamples, settings.seed)
    systems = list_systems(settings)
    check_resamples(len(systems), settings.resamples)
    Rouge(stemmer=settings.stemmer, sentences=settings.sentences or None)  # raises before a model runs
    output = check_output(settings.output)
    pairs = read_examples(settings)
    ids = [pair.id for pair in pairs]
    references = [list(pair.summaries) for pair in pairs]
    check_systems({system.name: [""] * len(pairs) for system in systems}, references)
    predictions = {system.name: _read_texts(system, ids, settings) for system in systems if system.kind == "file"}
    files = file_names([system.name for system in systems])
    with contextlib.ExitStack() as stack:
        if output:
            stack.enter_context(locked_folder(output))
            check_output(settings.output)  # again, because another process may have finished since
            make_output(output)
        report, comparison = _compare_systems(settings, systems, pairs, predictions, output, files)
        if output:
            write_scores(output, report, comparison, settings)
    return report, comparison


def _read_texts(system: System, ids: Sequence[str], settings: Settings) -> list[str]:
    """Read a file of predictions, in the encoding of the data or in UTF-8, in which this command writes them."""
    from duonlp.data.reading.document_files import is_wide
    from duonlp.metrics.predictions import read_predictions

    declared = check_encoding(settings.encoding or None)
    # Text in another encoding is practically never valid UTF-8, unless its characters are wide.
    encodings = (None, declared) if declared and not is_wide(declared) else (declared,)
    for encoding in encodings:
        try:
            return read_predictions(system.source, ids, limited=bool(settings.limit), encoding=encoding)
        except InputError as error:
            if error.argument != "encoding" or encoding == declared:
                raise
    raise AssertionError("unreachable")


def _compare_systems(
    settings: Settings, systems: Sequence[System], pairs: list["Pair"], predictions: dict[str, list[str]],
    output: Path | None, files: dict[str, str],
) -> tuple[dict[str, Any], "Comparison"]:  # fmt: skip
    """Let every system summarize the documents, and return the report and the Comparison."""
    from duonlp.metrics.bleu import Bleu
    from duonlp.metrics.comparison import compare
    from duonlp.metrics.rouge import Rouge
    from duonlp.util.console import Progress

    metrics = [Rouge(stemmer=settings.stemmer, sentences=settings.sentences or None), Bleu()]
    texts, seconds, framework = run_systems(systems, settings, pairs, predictions, output, files)
    texts = {name: [restore_line_breaks(text) for text in column] for name, column in texts.items()}
    references = [[restore_line_breaks(text) for text in pair.summaries] for pair in pairs]
    with Progress(len(pairs) * len(systems) * len(metrics), None, "scoring") as bar:
        comparison = compare(
            texts, references, metrics, confidence=settings.confidence, resamples=settings.resamples,
            seed=settings.seed, progress=bar.advance,
        )  # fmt: skip
    report = {
        "data": {"source": settings.data, "split": settings.split or None, "sha256": digest(pairs)},
        "systems": {
            system.name: {
                "kind": system.kind, "source": system.source, "words": mean_words(texts[system.name]),
                "seconds": seconds.get(system.name), "file": files[system.name] if output else None,
            }
            for system in systems
        },
        "reference_words": mean_words([text for summaries in references for text in summaries]),
        **comparison.to_dict(),
        "framework": framework,
        "command": asdict(settings),
        "versions": versions(framework),
    }  # fmt: skip
    return report, comparison


def read_examples(settings: Settings) -> list["Pair"]:
    """Read the documents and their summaries.

    Raises:
        InputError: They cannot be read, or there are none.
    """
    from duonlp.data.pairs.summaries import read_pairs

    pairs = list(
        read_pairs(
            settings.data, settings.split or None, document_field=settings.document_field or None,
            summary_field=settings.summary_field or None, limit=settings.limit or None, encoding=settings.encoding or None,
            quoting=settings.quoting,
        )
    )  # fmt: skip
    if not pairs:
        raise InputError(f"{settings.data!r} has no examples; give documents with summaries")
    return pairs


def check_output(output: str, figure: str = "scores.png") -> Path | None:
    """Return the folder for results; None for none.

    Args:
        output: The folder; "" for none.
        figure: Figure that will be written to it with matplotlib; "" for none.

    Raises:
        InputError: The folder has the results of another run, or cannot be written to.
    """
    if not output:
        return None
    folder = Path(output)
    if (folder / "scores.json").exists():
        raise InputError(f"--output {output!r} already has a scores.json; give another folder, or delete it")
    existing = next(parent for parent in (folder, *folder.resolve().parents) if parent.exists())
    if not existing.is_dir() or not os.access(existing, os.W_OK):
        raise InputError(f"--output is {output!r}; give a folder that can be written to")
    if figure and not importlib.util.find_spec("matplotlib"):
        warnings.warn(
            f'no {figure} will be written, because matplotlib is not installed; pip install "duonlp[bench]"',
            stacklevel=2,
        )
    return folder


def make_output(folder: Path) -> None:
    """Create the folders for results, before a model runs for hours.

    Raises:
        InputError: They cannot be created.
    """
    try:
        (folder / "predictions").mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(
            f"--output is {str(folder)!r}: {error.strerror}; give a folder that can be written to"
        ) from None


def file_names(names: Sequence[str]) -> dict[str, str]:
    """Map systems to unique files below the output folder, with characters that are unsafe in file names replaced."""
    files: dict[str, str] = {}
    for name in names:
        plain = re.sub(r"[^\w.+-]+", "_", name).strip("._")[:80] or "system"
        number, file = 1, f"predictions/{plain}.jsonl"
        while file.lower() in {other.lower() for other in files.values()}:
            number += 1
            file = f"predictions/{plain}-{number}.jsonl"
        files[name] = file
    return files


def write_scores(output: Path, report: dict[str, Any], comparison: "Comparison", settings: Settings) -> None:
    """Write the figure, and last scores.json, which marks the results as complete."""
    from duonlp.metrics.predictions import write_atomically

    if importlib.util.find_spec("matplotlib"):
        comparison.plot(output / "scores.png", f"{Path(settings.data).name} {settings.split}".strip())
    write_atomically(output / "scores.json", to_json(report, indent=2) + "\n")


def digest(pairs: Sequence["Pair"]) -> str:
    """Return the SHA-256 of the examples, which tells whether another run had the same data."""
    sha256 = hashlib.sha256()
    for pair in pairs:
        sha256.update(json.dumps([pair.document, *pair.summaries]).encode())
    return sha256.hexdigest()


def mean_words(texts: Sequence[str]) -> float:
    """Return the mean number of words of a text; ROUGE's F1 depends on it."""
    return round(sum(len(text.split()) for text in texts) / len(texts), 1)


def versions(framework: str | None) -> dict[str, str]:
    """Return the versions of this library, of Python and of the libraries that the scores depend on."""
    from duonlp import __version__

    installed = {"duonlp": __version__, "python": platform.python_version()}
    for name in (*LIBRARIES, *MODEL_LIBRARIES.get(framework or "", ())):
        try:
            installed[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return installed


def print_report(report: dict[str, Any], comparison: "Comparison", out: TextIO) -> None:
    """Print the tables, the mean lengths of summaries, and the folder with results."""
    console = plain_console(file=out)
    console.print(comparison.table())
    lengths = ", ".join(f"{name} {system['words']:g}" for name, system in report["systems"].items())
    words = f"\nwords per summary: references {report['reference_words']:g}, {lengths}"
    console.print(words)
    if report["command"]["output"]:
        console.print(f"Results: {report['command']['output']}")
