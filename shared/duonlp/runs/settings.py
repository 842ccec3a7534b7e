"""Settings that every training run on examples with labels has, and what a run asks of its data."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Protocol

from duonlp.dtypes import TRAINING_DTYPES, check_dtype
from duonlp.errors import InputError
from duonlp.quantization import SCHEMES
from duonlp.training.fit_config import FitConfig
from duonlp.training.fit_loop import Scorer
from duonlp.typing import Engine
from duonlp.util.frameworks import PACKAGES
from duonlp.util.reading import check_encoding
from duonlp.util.suggestions import choice, nearest

TRAIN, VALIDATION = "train", "validation"
"""Default names of the splits."""


@dataclass(frozen=True, kw_only=True)
class RunSettings:
    """Settings of every run.

    Attributes:
        data: A file, a folder or a Hub id.
        output: Folder of the run. If it holds this run already, the run is resumed.
        framework: "tf" or "jax", for the command line; a run stores the one it uses.
        config: Configuration of a dataset on the Hub, such as "plus".
        train_split: Name of the training split. A single table has none: all of it is trained on.
        validation_split: Name of the validation split; empty to validate nothing.
        encoding: Encoding of files of text, such as "cp1252"; None for UTF-8.
        quoting: Whether fields of CSV and TSV files may be quoted; None to decide as the reader of the data does.
        limit: Maximum number of examples per split, evenly spaced over it; None for all.
        max_length: Maximum number of tokens of an input; None for the task's default. (Batches are padded to their texts.)
        batch_size: Rows per step.
        dtype: Compute dtype: "float32" or "bfloat16". Parameters and optimizer state stay in float32.
        seed: Seed for shuffling and new parameters; `fit.seed` is that of dropout.
        cache: Folder to cache tokenized texts in for later runs; None keeps them in memory.
        tensorboard: Whether to write TensorBoard event files too.
        quantization_aware: Scheme to train for, one of duonlp.quantization.SCHEMES: each step rounds as the quantized model will,
            and the best model is also saved quantized, in ``best-SCHEME``. "" to train as usual.
        fit: Training settings.

    Raises:
        InputError: A value is invalid.
    """

    data: str
    output: str
    framework: str = ""
    config: str | None = None
    train_split: str = TRAIN
    validation_split: str = VALIDATION
    encoding: str | None = None
    quoting: bool | None = None
    limit: int | None = None
    max_length: int | None = None
    batch_size: int = 16
    dtype: str = "float32"
    seed: int = 0
    cache: str | None = None
    tensorboard: bool = False
    quantization_aware: str = ""
    fit: FitConfig = field(default_factory=FitConfig)

    program: ClassVar[str] = "a run"
    """Command that performs the run, for messages and the heading of settings.toml."""

    may_change: ClassVar[tuple[str, ...]] = ("output", "cache", "tensorboard")
    """Settings that may change on resume. Those of `fit` are determined by its ``fixed_on_resume``."""

    def __post_init__(self) -> None:
        for name in ("data", "output"):
            if not getattr(self, name):
                raise InputError(f"{name} is empty; give --{name}, or set {name} in the TOML file")
        for name in ("limit", "max_length", "batch_size"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise InputError(f"{name} is {value}; it must be at least 1")
        if self.framework and self.framework not in PACKAGES:
            raise InputError(
                f"framework {self.framework!r} is not one of {', '.join(PACKAGES)}{nearest(self.framework, PACKAGES)}"
            )
        if self.quantization_aware:
            choice("quantization_aware", self.quantization_aware, SCHEMES)
        check_dtype(self.dtype, allowed=TRAINING_DTYPES)
        check_encoding(self.encoding)

    @property
    def folder(self) -> Path:
        """Folder of the run."""
        return Path(self.output).expanduser()


def check_model(settings: Any, task: str) -> None:
    """Raise InputError if the settings name no checkpoint, or another task than their own."""
    if settings.task != task:
        raise InputError(f"task is {settings.task!r}, but these are the settings of {task}; set task to {task!r}")
    if not settings.model:
        raise InputError("model is empty; give --model with a folder in Hugging Face layout, or a Hub id")


class RunData(Protocol):
    """The data of a run, which knows what differs between tasks.

    Attributes:
        head: Head of the model to train, as in duonlp.heads.
        auto_class: Name of the engines' auto class of models with this head.
        row_noun: What a row of a batch is called, in the plural.
        batches: Training batches, with ``epoch(n)`` and ``len()``.
    """

    head: ClassVar[str]
    auto_class: ClassVar[str]
    row_noun: ClassVar[str]

    @property
    def batches(self) -> Any: ...

    def describe(self) -> dict[str, Any]:
        """Return what identifies the data, for run.json and results.json."""
        ...

    def plan(self) -> dict[str, Any]:
        """Return what a plan says about the data: "summary", a line, and whatever else programs may want to know."""
        ...

    def overrides(self) -> dict[str, Any]:
        """Return keys of config.json that the data decides, such as label names."""
        ...

    def scorer(self, package: Engine | None) -> Scorer | None:
        """Return a scorer of the validation data, or None without any.

        Args:
            package: tfnlp or jaxnlp, which predicts; None for a scorer that can only do its dry run.
        """
        ...

    def at_threshold(self, scorer: Any) -> dict[str, float] | None:
        """Return the scores of the scorer's last predictions at the best "threshold"; None if none can be chosen."""
        ...

    def at_label_thresholds(self, scorer: Any) -> dict[str, Any] | None:
        """Return the scores of the last predictions with the best "thresholds" of each label; None without several labels."""
        ...

    def save_with(self, folder: Path, at_threshold: dict[str, float] | None) -> None:
        """Write what a pipeline should know beside the model in `folder`."""
        ...
