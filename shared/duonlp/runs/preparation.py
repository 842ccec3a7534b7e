"""From raw text to blocks: read, clean, split, train a tokenizer, tokenise and pack. Each stage is kept, and not done twice."""

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
from duonlp.util.files import write_text

CORPUS, TOKENIZER, BLOCKS, DONE = "corpus", "tokenizer", "blocks", "stage.json"
SIDES = ("training", "held_out")


@dataclass(frozen=True)
class Prepared:
    """What a run trains on. corpus, tokenizer_report: what was found, for JSON."""

    tokenizer: Any
    training: Blocks
    held_out: Blocks
    corpus: dict[str, Any]
    tokenizer_report: dict[str, Any]


def prepare(
    run: RunConfig, folder: str | Path, *, workers: int = 1, say: Callable[[str], None] = lambda _: None
) -> Prepared:
    """Makes ``folder/corpus``, ``folder/tokenizer`` and ``folder/blocks``, each when it is not there for these settings.

    Killed and called again, it goes on with the stage it was in; blocks go on within theirs.

    Args:
        workers: processes that clean.
        say: is told what begins.

    Raises:
        InputError: an empty corpus, or whatever a stage refuses.
    """
    folder = Path(folder)
    corpus = _stage(folder / CORPUS, _corpus_settings(run), lambda at: _corpus(run, at, workers, say))
    report = _stage(folder / TOKENIZER, _tokenizer_settings(run), lambda at: _tokenizer(run, folder, at, say))
    tokenizer = load_tokenizer(folder)
    for side in SIDES:
        say(f"tokenising and packing: {side.replace('_', ' ')}")
        write_blocks(
            _texts(folder, side), tokenizer, folder / BLOCKS / side, block_length=run.block_length,
            segment_ids=run.segment_ids,
        )  # fmt: skip
    return open_prepared(folder, tokenizer, corpus, report)


def open_prepared(folder: str | Path, tokenizer=None, corpus=None, report=None) -> Prepared:
    """What :func:`prepare` made, checked to belong together.

    Raises:
        InputError: a part is not there, or not whole.
    """
    folder = Path(folder)
    for part in (CORPUS, TOKENIZER):
        if not (folder / part / DONE).is_file():
            raise InputError(f"{str(folder)!r} has no finished {part}; run the preparation first")
    tokenizer = load_tokenizer(folder) if tokenizer is None else tokenizer
    training, held_out = (open_blocks(folder / BLOCKS / side, tokenizer) for side in SIDES)
    corpus = _read(folder / CORPUS)["result"] if corpus is None else corpus
    report = _read(folder / TOKENIZER)["result"] if report is None else report
    return Prepared(tokenizer, training, held_out, corpus, report)


def load_tokenizer(folder: str | Path):
    """The tokenizer in a folder that was prepared."""
    return frameworks.transformers().AutoTokenizer.from_pretrained(Path(folder) / TOKENIZER, local_files_only=True)


def _stage(folder: Path, settings: dict, make: Callable[[Path], dict]) -> dict:
    """The result of a stage: as it was kept, when the settings are those it was made with; else made anew."""
    settings = json.loads(json.dumps(settings))
    kept = _read(folder)
    if kept is not None and kept["settings"] == settings:
        return kept["result"]
    if kept is not None:
        raise InputError(
            f"{str(folder)!r} was made with other settings; give another folder, or remove it (and what was made from it)"
        )
    folder.mkdir(parents=True, exist_ok=True)
    result = json.loads(json.dumps(make(folder)))
    write_text(folder / DONE, json.dumps({"settings": settings, "result": result}, indent=2) + "\n")
    return result


def _read(folder: Path) -> dict | None:
    file = folder / DONE
    return json.loads(file.read_text(encoding="utf-8")) if file.is_file() else None


def _corpus_settings(run: RunConfig) -> dict:
    whole = run.to_dict()
    return {name: whole[name] for name in ("corpus", "corpus_options", "cleaning", "held_out")}


def _corpus(run: RunConfig, folder: Path, workers: int, say) -> dict:
    report = CleaningReport()

    def documents() -> Iterator:
        for source, options in run.sources:
            say(f"reading and cleaning {source}")
            yield from read_documents(source, report=report, **options)

    write_split(clean(documents(), run.cleaning, report, workers=workers), folder, held_out=run.held_out)
    return report.to_dict()


def _tokenizer_settings(run: RunConfig) -> dict:
    return _corpus_settings(run) | {"tokenizer": run.tokenizer_options, "block_length": run.block_length}


def _tokenizer(run: RunConfig, folder: Path, at: Path, say) -> dict:
    options = run.tokenizer_options
    if "from" in options:
        if len(options) > 1:
            raise InputError(f"the tokenizer is taken from {options['from']!r}, so it has no other options: {options}")
        tokenizer = frameworks.transformers().AutoTokenizer.from_pretrained(options["from"])
    else:
        say("training a tokenizer")
        options.setdefault("max_length", run.block_length)
        tokenizer = train_tokenizer(_texts(folder, "training"), **options)
    tokenizer.save_pretrained(at)
    return tokenizer_report(tokenizer, list(_texts(folder, "held_out"))).to_dict()


def _texts(folder: Path, side: str) -> Iterator[str]:
    for document in read_documents(folder / CORPUS / f"{side}.jsonl.gz"):
        yield document.text
