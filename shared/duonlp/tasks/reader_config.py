"""Read and write reader.json, which ``duonlp finetune`` saves beside a reader: how it reads, and when it finds no answer."""

from dataclasses import asdict, dataclass
from pathlib import Path

from duonlp.schema import POSITIONS, integer, number
from duonlp.tasks.base import read_json
from duonlp.util.files import write_text
from duonlp.util.json_text import to_json

READER_FILE = "reader.json"

SCHEMA = {
    "max_seq_len": POSITIONS,
    "doc_stride": integer(0, 1 << 30),
    "max_answer_len": POSITIONS,
    "null_threshold": number(-1e6, 1e6) | None,
}
"""Kinds of its keys."""


@dataclass(frozen=True)
class ReaderConfig:
    """Settings that a reader was trained with, and its tuned threshold.

    Attributes:
        max_seq_len: Number of tokens in a window.
        doc_stride: Number of tokens by which windows overlap.
        max_answer_len: Maximum length of an answer in tokens.
        null_threshold: Null gap (the logit of no answer minus that of the best answer) above which there is no answer, tuned on
            validation questions; None if it was not tuned.
    """

    max_seq_len: int
    doc_stride: int
    max_answer_len: int
    null_threshold: float | None = None


def write_reader_config(folder: str | Path, config: ReaderConfig) -> None:
    """Write reader.json into the folder of a model."""
    write_text(Path(folder) / READER_FILE, to_json(asdict(config), indent=2) + "\n")


def read_reader_config(folder: str | Path) -> ReaderConfig | None:
    """Return what is in a model's reader.json, or None without one.

    Raises:
        CheckpointError: The file is not valid JSON, or a value is of the wrong kind.
    """
    values = read_json(Path(folder) / READER_FILE, SCHEMA)
    return None if values is None else ReaderConfig(**{name: values.get(name) for name in SCHEMA})
