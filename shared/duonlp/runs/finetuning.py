"""Fine-tune a classifier on labeled texts, in either framework, as a reproducible run."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from duonlp.checkpoints.checkpoint import open_checkpoint
from duonlp.errors import InputError
from duonlp.parameters import count_parameters
from duonlp.runs import folder as run_folder
from duonlp.runs import labelled as labelled_run
from duonlp.runs.labelled import LabelledData, LabelledRunSettings
from duonlp.training.result import FitResult
from duonlp.typing import Engine


@dataclass(frozen=True, kw_only=True)
class FinetuneSettings(LabelledRunSettings):
    """Settings of a fine-tuning run, in addition to LabelledRunSettings.

    Attributes:
        model: Checkpoint to start from: a folder in Hugging Face layout, or a Hub id. Its classification head is kept if it
            has one for the same labels; otherwise the head starts from random values.
    """

    model: str

    program: ClassVar[str] = "duonlp finetune"

    def __post_init__(self) -> None:
        if not self.model:
            raise InputError("model is empty; give --model with a folder in Hugging Face layout, or a Hub id")
        super().__post_init__()


def finetune(
    package: Engine,
    settings: FinetuneSettings,
    *,
    on_evaluation: Callable[[int, Mapping[str, float]], None] | None = None,
    console: Any = True,
) -> dict[str, Any]:
    """Fine-tune a checkpoint on labeled texts, keep the best model and report its scores.

    Called again with the same settings, it resumes an interrupted run and only re-evaluates a finished one.

    Args:
        package: tfnlp or jaxnlp.
        settings: Settings of the run.
        on_evaluation: Called with the steps done and the scores at each evaluation; an exception it raises ends the training.
        console: Whether to show progress, or the rich Console to show it on. True is standard error.

    Returns:
        The report that is also written to results.json: "metrics" of the best model by name, "at_threshold" (see
        threshold_scores), "best", "steps", "examples", "seconds" (of training), "examples_per_second", "history" (every
        evaluation), "data", "parameters", "bytes" (of the weights on disk), "settings", "machine".

    Raises:
        InputError: Settings, data and output folder are invalid or incompatible; raised before anything is computed.
        CheckpointError: The checkpoint cannot be read.
        NonFiniteLossError: The loss became non-finite; the best model and the last checkpoint predate it.
    """
    run_folder.check_output(settings, run_folder.framework_name(package))
    data, tokenizer = prepare(settings)
    model, is_new_head = labelled_run.load_classifier(
        package, settings.model, data.label_names, data.multi_label, settings.dtype, settings.seed
    )
    fit = run_folder.training_module(package).fit
    head = "a new head" if is_new_head else "the checkpoint's head"
    log = run_folder.make_printer(console)
    log(f"{len(data.batches.texts)} training texts, {len(data.label_names)} labels, {head}")

    def train(evaluate: Any, **options: Any) -> FitResult:
        return fit(
            model, data.batches, settings.fit, settings.folder, evaluate=evaluate, data=data.describe(),
            log={"console": console, "tensorboard": settings.tensorboard}, **options,
        )  # fmt: skip

    return run_folder.train_and_report(package, settings, data, tokenizer, train, on_evaluation=on_evaluation)


def prepare(settings: FinetuneSettings) -> tuple[LabelledData, Any]:
    """Read and tokenize the data and return it with the tokenizer; nothing is trained and no framework is needed.

    Raises:
        InputError: The data cannot be read or is incompatible with the settings or the checkpoint.
        CheckpointError: The checkpoint cannot be read.
    """
    checkpoint = open_checkpoint(settings.model)
    tokenizer = checkpoint.tokenizer()
    train, validation = labelled_run.read_texts(settings)
    label_names = labelled_run.matching_label_names(settings.model, tuple(train.label_names))
    if label_names is not None:
        train = labelled_run.with_label_names(train, label_names)
        validation = None if validation is None else labelled_run.with_label_names(validation, label_names)
    labelled_run.check_labels(settings.model, tuple(train.label_names))
    texts = (train, validation)
    return labelled_run.make_batches(settings, texts, tokenizer, checkpoint.transformer_config()), tokenizer


def plan(settings: FinetuneSettings, framework: str) -> dict[str, Any]:
    """Return what a run would do, without training: data, labels, batches, steps, parameters.

    Args:
        settings: Settings of the run.
        framework: "tf" or "jax".

    Raises:
        InputError: As for :func:`finetune`.
        CheckpointError: As for :func:`finetune`.
    """
    run_folder.check_output(settings, framework)
    data, _ = prepare(settings)
    config = open_checkpoint(settings.model).transformer_config(num_labels=len(data.label_names))
    return run_folder.plan_report(settings, data, count_parameters(config, "sequence-classification"), framework)
