"""Prepare a pretraining run: read, clean and split a corpus, train a tokenizer, tokenize and pack blocks.

Each stage is stored and not repeated.
"""

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from duonlp.data.blocks.reader import Blocks, open_blocks, write_blocks
from duonlp.data.cleaning.cleaner import clean
from duonlp.data.cleaning.report import CleaningReport
from duonlp.data.cleaning.splits import write_split
from duonlp.data.reading.documents import read_documents
from duonlp.errors import InputError
from duonlp.runs.pretraining import RunConfig
from duonlp.tokenizers.report import tokenizer_report
from duonlp.tokenizers.train import train_tokenizer
from duonlp.util import frameworks
from duonlp.util.files import locked_folder, may_read, storage_error, storage_errors, write_text
from duonlp.util.json_text import to_json
from duonlp.util.reading import read_json_object

CORPUS, TOKENIZER, BLOCKS, DONE = "corpus", "tokenizer", "blocks", "stage.json"
SIDES = ("training", "held_out")


@dataclass(frozen=True)
class Prepared:
    """The prepared data of a run.

    Attributes:
        tokenizer: The tokenizer.
        training: Training blocks.
        held_out: Held-out blocks.
        corpus: Cleaning report, as JSON-compatible values.
        tokenizer_report: Tokenizer report on the held-out texts, as JSON-compatible values.
    """

    tokenizer: Any
    training: Blocks
    held_out: Blocks
    corpus: dict[str, Any]
    tokenizer_report: dict[str, Any]


def prepare(
    run: RunConfig, folder: str | Path, *, workers: int = 1, on_progress: Callable[[str], None] = lambda _: None
) -> Prepared:
    """Create ``folder/corpus``, ``folder/tokenizer`` and ``folder/blocks``, skipping stages that are already complete.

    Called again after a kill, it repeats the unfinished stage; the blocks stage resumes where it stopped.

    Args:
        run: The run to prepare.
        folder: Output folder.
        workers: Number of processes that clean the corpus.
        on_progress: Called with a line of text when something starts.

    Raises:
        InputError: The corpus is empty, a stage was made with other settings, a stage rejects its settings, or another process
            or thread is preparing the folder.
        StorageError: A file cannot be written; what is complete stays.
    """
    folder = Path(folder)
    with locked_folder(folder, "prepare"):
        corpus = _run_stage(
            folder / CORPUS, _corpus_settings(run), lambda output: _make_corpus(run, output, workers, on_progress)
        )
        report = _run_stage(
            folder / TOKENIZER,
            _tokenizer_settings(run),
            lambda output: _make_tokenizer(run, folder, output, on_progress),
        )
        tokenizer = load_tokenizer(folder)
        for side in SIDES:
            on_progress(f"tokenizing and packing the {side.replace('_', '-')} texts")
            write_blocks(
                _texts(folder, side), tokenizer, folder / BLOCKS / side, block_length=run.block_length,
                segment_ids=run.segment_ids,
            )  # fmt: skip
        return open_prepared(folder, tokenizer, corpus, report)


def open_prepared(
    folder: str | Path,
    tokenizer: Any = None,
    corpus: dict[str, Any] | None = None,
    report: dict[str, Any] | None = None,
) -> Prepared:
    """Open what :func:`prepare` created and check that its parts belong together.

    Args:
        folder: Folder that was prepared.
        tokenizer: The tokenizer, if loaded already.
        corpus: The cleaning report, if loaded already.
        report: The tokenizer report, if loaded already.

    Raises:
        InputError: A part is missing or incomplete.
    """
    folder = Path(folder)
    stored = {part: _read_stage(folder / part) for part in (CORPUS, TOKENIZER)}
    for part, stage in stored.items():
        if stage is None:
            raise InputError(f"{str(folder)!r} has no finished {part}; prepare the run first")
    tokenizer = load_tokenizer(folder) if tokenizer is None else tokenizer
    training, held_out = (open_blocks(folder / BLOCKS / side, tokenizer) for side in SIDES)
    results: dict[str, Any] = {part: stage["result"] for part, stage in stored.items() if stage is not None}
    return Prepared(
        tokenizer,
        training,
        held_out,
        results[CORPUS] if corpus is None else corpus,
        results[TOKENIZER] if report is None else report,
    )


def load_tokenizer(folder: str | Path) -> Any:
    """Load the tokenizer of a prepared folder; raise InputError if its files cannot be read."""
    for file in (Path(folder) / TOKENIZER).glob("*.json"):
        may_read(file)
    return frameworks.transformers().AutoTokenizer.from_pretrained(Path(folder) / TOKENIZER, local_files_only=True)


def _run_stage(folder: Path, settings: dict[str, Any], make: Callable[[Path], dict[str, Any]]) -> dict[str, Any]:
    """Return the stored result of a stage if it is complete, else run the stage and store it.

    Raises:
        InputError: The stage was run with other settings.
    """
    settings = json.loads(json.dumps(settings))
    stored = _read_stage(folder)
    if stored is not None and stored["settings"] == settings:
        return stored["result"]
    if stored is not None:
        raise InputError(
            f"{str(folder)!r} was made with other settings; use another folder, or delete it and what was made from it"
        )
    with storage_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
    result = json.loads(json.dumps(make(folder)))
    write_text(folder / DONE, to_json({"settings": settings, "result": result}, indent=2) + "\n")
    return result


def _read_stage(folder: Path) -> dict[str, Any] | None:
    """Return the "settings" and the "result" of a complete stage, else None."""
    file = folder / DONE
    return read_json_object(file, advice="delete it to prepare the data again") if may_read(file) else None


def _corpus_settings(run: RunConfig) -> dict[str, Any]:
    settings = run.to_dict()
    return {name: settings[name] for name in ("corpus", "corpus_options", "cleaning", "held_out")}


def _make_corpus(run: RunConfig, output: Path, workers: int, on_progress: Callable[[str], None]) -> dict[str, Any]:
    report = CleaningReport()

    def documents() -> Iterator[Any]:
        for source, options in run.sources:
            on_progress(f"reading and cleaning {source}")
            yield from read_documents(source, report=report, **options)

    write_split(clean(documents(), run.cleaning, report, workers=workers), output, held_out=run.held_out)
    return report.to_dict()


def _tokenizer_settings(run: RunConfig) -> dict[str, Any]:
    return _corpus_settings(run) | {"tokenizer": run.tokenizer_options, "block_length": run.block_length}


def _make_tokenizer(run: RunConfig, folder: Path, output: Path, on_progress: Callable[[str], None]) -> dict[str, Any]:
    options = run.tokenizer_options
    if "from" in options:
        if len(options) > 1:
            others = ", ".join(name for name in options if name != "from")
            raise InputError(f"tokenizer has from={options['from']!r}, which excludes other options; remove {others}")
        tokenizer = frameworks.transformers().AutoTokenizer.from_pretrained(options["from"])
    else:
        on_progress("training a tokenizer")
        options.setdefault("max_length", run.block_length)
        tokenizer = train_tokenizer(_texts(folder, "training"), **options)
    try:
        tokenizer.save_pretrained(output)
    except Exception as error:  # of tokenizers' own, also for a full disk
        raise storage_error(output, error) from error
    return tokenizer_report(tokenizer, list(_texts(folder, "held_out"))).to_dict()


def _texts(folder: Path, side: str) -> Iterator[str]:
    for document in read_documents(folder / CORPUS / f"{side}.jsonl.gz"):
        yield document.text
