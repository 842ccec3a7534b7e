"""Settings and data of fine-tuning a reader: questions on contexts, in windows, with the spans that answer them."""

import hashlib
import itertools
import json
import warnings
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from duonlp.checkpoints.checkpoint import open_checkpoint
from duonlp.data.labelled.files import is_one_table
from duonlp.errors import InputError
from duonlp.runs.settings import VALIDATION, RunSettings, check_model
from duonlp.tasks.reader_config import ReaderConfig, write_reader_config
from duonlp.training.fit_config import FitConfig
from duonlp.typing import Engine

if TYPE_CHECKING:
    from duonlp.data.questions import QuestionBatches, Questions
    from duonlp.evaluation.reader import ReaderScorer

TASK = "question-answering"

FIT = FitConfig(epochs=3, learning_rate=2e-4, warmup_share=0.1, best_metric="best_f1")
"""Default training settings, which work well for a MiniLM on SubjQA with batches of 16 windows."""

WINDOW, STRIDE = 384, 128
"""Default number of tokens in a window, and in the overlap of two, if that is at most half of a window."""


@dataclass(frozen=True, kw_only=True)
class QuestionAnsweringSettings(RunSettings):
    """Settings of fine-tuning a reader, in addition to RunSettings.

    `data` is what duonlp.data.read_questions takes. max_length is the number of tokens in a window, by default 384, or the
    model's maximum if that is less.

    Attributes:
        model: Checkpoint to start from: a folder in Hugging Face layout, or a Hub id. Its question-answering head is kept if
            it has one, so that a reader is adapted to a domain by fine-tuning it again.
        task: The task, for settings.toml.
        validation_data: Questions to validate on, if `data` has no such split, as SQuAD has a file for each; None for none.
        doc_stride: Number of tokens by which the windows of a context overlap; None for 128, or half a window if that is less.
        max_answer_length: Maximum length of a predicted answer in tokens.
        batch_size: Windows per step.
        folds: Number of parts for cross-validation, which divides all of `data` (its training split, if it has splits); None
            for none.
        fold: Part to validate on, from 1; the others are trained on. None for all, one after the other.
        fold_by: Column whose values are never on both sides, such as "title", the product of SubjQA.
    """

    model: str
    task: str = TASK
    validation_data: str | None = None
    batch_size: int = 16
    doc_stride: int | None = None
    max_answer_length: int = 30
    folds: int | None = None
    fold: int | None = None
    fold_by: str = "title"
    fit: FitConfig = field(default_factory=lambda: FIT)

    program: ClassVar[str] = "duonlp finetune"

    def __post_init__(self) -> None:
        check_model(self, TASK)
        super().__post_init__()
        if (self.doc_stride or 0) < 0 or self.max_answer_length < 1:
            raise InputError(
                f"doc_stride is {self.doc_stride} and max_answer_length {self.max_answer_length}; they must be at least 0 and 1"
            )
        if self.folds is not None and self.folds < 2:
            raise InputError(f"folds is {self.folds}; it must be at least 2, or none without cross-validation")
        if self.fold is not None and self.folds is None:
            raise InputError(
                f"fold is {self.fold}, but there are no folds; set folds, such as folds=5, or leave out fold"
            )
        if self.fold is not None and not 1 <= self.fold <= (self.folds or 0):
            raise InputError(f"fold is {self.fold}; it must be from 1 to folds, which is {self.folds}")
        if self.folds is not None and self.validation_data:
            raise InputError(
                f"folds is {self.folds}, which validates on parts of {self.data!r}, and validation_data is "
                f"{self.validation_data!r}; give one of the two"
            )


@dataclass(frozen=True)
class QuestionData:
    """The windows of a run's questions.

    Attributes:
        batches: Training batches.
        train: Training questions.
        validation: Validation questions, or None.
        fingerprint: Hash of the questions.
        tokenizer: Tokenizer of the model.
        reading: How contexts are cut into windows.
        batch_size: Windows that are evaluated at once.
    """

    batches: "QuestionBatches"
    train: "Questions"
    validation: "Questions | None"
    fingerprint: str
    tokenizer: Any
    reading: ReaderConfig
    batch_size: int

    head: ClassVar[str] = TASK
    auto_class: ClassVar[str] = "AutoModelForQuestionAnswering"
    row_noun: ClassVar[str] = "windows"

    def describe(self) -> dict[str, Any]:
        """Return what identifies the data, for run.json and results.json."""
        validation = self.validation or ()
        return {
            "fingerprint": self.fingerprint,
            "train": len(self.train),
            "train_unanswerable": unanswerable(self.train),
            "validation": len(validation),
            "validation_unanswerable": unanswerable(validation),
        }

    def plan(self) -> dict[str, Any]:
        """Return what a plan says about the data: "summary", a line, and "unreachable", the ids that it counts."""
        data = self.describe()
        sides = (
            f"{data[side]} {name} questions ({data[f'{side}_unanswerable']} unanswerable)"
            for side, name in (("train", "training"), ("validation", "validation"))
        )
        unreachable = self.batches.unreachable
        lost = f" (too short for the answers to {len(unreachable)} of them, which train as unanswerable)"
        return {
            "summary": f"{', '.join(sides)}, windows of {self.reading.max_seq_len} tokens{lost if unreachable else ''}",
            "unreachable": unreachable,
        }

    def overrides(self) -> dict[str, Any]:
        """Return no keys: a reader has two outputs, whatever the data."""
        return {}

    def scorer(self, package: Engine | None) -> "ReaderScorer | None":
        """Return a scorer of the validation questions, or None without any.

        Args:
            package: tfnlp or jaxnlp, which predicts; None for a scorer that can only do its dry run.
        """
        from duonlp.evaluation.reader import ReaderScorer

        if self.validation is None:
            return None
        options = {name: value for name, value in asdict(self.reading).items() if name != "null_threshold"}
        pipeline = None if package is None else package.pipeline
        return ReaderScorer(pipeline, self.validation, self.tokenizer, batch_size=self.batch_size, **options)

    def at_threshold(self, scorer: Any) -> dict[str, float] | None:
        """Return the scores of the last predictions with the null threshold that is best for them."""
        return scorer.at_threshold()

    def at_label_thresholds(self, scorer: Any) -> None:
        """Return None: there are no labels."""

    def save_with(self, folder: Path, at_threshold: dict[str, float] | None) -> None:
        """Write reader.json: how the model was trained to read, and its null threshold if it was tuned."""
        threshold = None if at_threshold is None else at_threshold["threshold"]
        write_reader_config(folder, replace(self.reading, null_threshold=threshold))


def prepare(settings: QuestionAnsweringSettings) -> tuple[QuestionData, Any]:
    """Read the questions and cut their contexts into windows; return them with the tokenizer.

    Raises:
        InputError: The data cannot be read or is incompatible with the settings or the checkpoint.
        CheckpointError: The checkpoint cannot be read.
    """
    from duonlp.data.questions import QuestionBatches

    checkpoint = open_checkpoint(settings.model)
    tokenizer, longest = checkpoint.tokenizer(), checkpoint.transformer_config().max_length
    if settings.max_length is not None and settings.max_length > longest:
        raise InputError(f"max_length is {settings.max_length}; the model reads at most {longest} tokens")
    window = settings.max_length or min(WINDOW, longest)
    stride = min(window // 2, STRIDE) if settings.doc_stride is None else settings.doc_stride
    if stride >= window:
        raise InputError(
            f"doc_stride is {stride}, but a window has {window} tokens; lower doc_stride or raise max_length"
        )
    reading = ReaderConfig(window, stride, settings.max_answer_length)
    train, validation = read_splits(settings)
    batches = QuestionBatches(
        train, tokenizer, settings.batch_size, max_seq_len=reading.max_seq_len, doc_stride=reading.doc_stride,
        seed=settings.seed, cache=settings.cache,
    )  # fmt: skip
    data = QuestionData(
        batches, train, validation, fingerprint(train, validation), tokenizer, reading, settings.batch_size
    )
    return data, tokenizer


def read_splits(settings: QuestionAnsweringSettings) -> "tuple[Questions, Questions | None]":
    """Read the training questions and the validation questions (None without any).

    Raises:
        InputError: The data cannot be read, or cannot be divided into folds.
    """
    from duonlp.data.questions import folds, read_questions

    options: dict[str, Any] = {
        "config": settings.config, "encoding": settings.encoding, "quoting": settings.quoting, "limit": settings.limit,
    }  # fmt: skip
    has_splits = not is_one_table(settings.data, settings.encoding)
    train = read_questions(settings.data, settings.train_split if has_splits else None, **options)
    if settings.folds is not None:
        parts = folds(train, settings.folds, by=settings.fold_by, seed=settings.seed)
        return next(itertools.islice(parts, (settings.fold or 1) - 1, None))
    if settings.validation_data:
        source, split = settings.validation_data, settings.validation_split or VALIDATION
        if is_one_table(source, settings.encoding):
            return train, read_questions(source, **options)
        return train, read_questions(source, split, **options)
    if has_splits and settings.validation_split:
        return train, read_questions(settings.data, settings.validation_split, **options)
    if settings.validation_split:
        warnings.warn(
            f"{settings.data!r} is a single table: all of it is trained on, nothing is validated and the last model is kept; to "
            "keep the best one, give validation_data",
            stacklevel=3,
        )
    return train, None


def unanswerable(questions: Iterable[Mapping[str, Any]]) -> int:
    """Return the number of questions without an answer."""
    return sum(not row["answers"]["text"] for row in questions)


def fingerprint(*sides: "Questions | None") -> str:
    """Return a hash of questions, contexts and answers, which does not depend on how the data is stored."""
    digest = hashlib.sha256()
    for questions in sides:
        for row in questions or ():
            answers = [list(row["answers"]["text"]), [int(start) for start in row["answers"]["answer_start"]]]
            digest.update(json.dumps([row["id"], row["question"], row["context"], answers]).encode())
        digest.update(b"|")
    return digest.hexdigest()[:16]
