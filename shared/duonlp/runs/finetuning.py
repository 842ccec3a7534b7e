"""Fine-tune a checkpoint on labeled texts or on questions, in either framework, as a reproducible run."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, TypeAlias

from duonlp.checkpoints.checkpoint import open_checkpoint
from duonlp.parameters import count_parameters
from duonlp.runs import folder as run_folder
from duonlp.runs import labelled as labelled_run
from duonlp.runs import question_answering
from duonlp.runs.labelled import LabelledData, LabelledRunSettings
from duonlp.runs.models import load_for_training, prepare_for_quantization
from duonlp.runs.question_answering import QuestionAnsweringSettings
from duonlp.runs.settings import RunData, check_model
from duonlp.training.result import FitResult
from duonlp.typing import Engine


@dataclass(frozen=True, kw_only=True)
class FinetuneSettings(LabelledRunSettings):
    """Settings of fine-tuning a classifier, in addition to LabelledRunSettings.

    Attributes:
        model: Checkpoint to start from: a folder in Hugging Face layout, or a Hub id. Its classification head is kept if it
            has one for the same labels; otherwise the head starts from random values.
        task: The task, for settings.toml.
    """

    model: str
    task: str = "text-classification"

    program: ClassVar[str] = "duonlp finetune"

    def __post_init__(self) -> None:
        check_model(self, "text-classification")
        super().__post_init__()


AnySettings: TypeAlias = FinetuneSettings | QuestionAnsweringSettings

TASKS: dict[str, type[AnySettings]] = {
    "text-classification": FinetuneSettings,
    "question-answering": QuestionAnsweringSettings,
}
"""Settings of a fine-tuning by task."""


def finetune(
    package: Engine,
    settings: AnySettings,
    *,
    on_evaluation: Callable[[int, Mapping[str, float]], None] | None = None,
    console: Any = True,
) -> dict[str, Any]:
    """Fine-tune a checkpoint, keep the best model and report its scores.

    The settings decide the task. Called again with the same settings, it resumes an interrupted run and only re-evaluates a
    finished one.

    Args:
        package: tfnlp or jaxnlp.
        settings: Settings of the run.
        on_evaluation: Called with the steps done and the scores at each evaluation; an exception it raises ends the training.
        console: Whether to show progress, or the rich Console to show it on. True is standard error.

    Returns:
        The report that is also written to results.json: "metrics" of the best model by name, "at_threshold" (see
        threshold_scores, choose_thresholds, or squad_scores), "at_label_thresholds" (of several labels per text), "best",
        "steps", "examples" (rows of batches, called "row_noun"), "seconds" (of training), "examples_per_second", "history"
        (every evaluation), "data", "parameters", "bytes" (of the weights on disk), "settings", "machine".

    Raises:
        InputError: Settings, data and output folder are invalid or incompatible; raised before anything is computed.
        CheckpointError: The checkpoint cannot be read.
        NonFiniteLossError: The loss became non-finite; the best model and the last checkpoint predate it.
    """
    run_folder.check_output(settings, run_folder.framework_name(package))
    data, tokenizer = prepare(settings)
    model, is_new_head = load_for_training(
        package, data.auto_class, settings.model, settings.dtype, settings.seed, **data.overrides()
    )
    model = prepare_for_quantization(package, model, settings, data.batches)
    fit = run_folder.training_module(package).fit
    log = run_folder.make_printer(console)
    head = "a new head" if is_new_head else "the checkpoint's head"
    log(f"{data.plan()['summary']}; {head}")

    def train(evaluate: Any, **options: Any) -> FitResult:
        return fit(
            model, data.batches, settings.fit, settings.folder, evaluate=evaluate, data=data.describe(),
            log={"console": console, "tensorboard": settings.tensorboard}, **options,
        )  # fmt: skip

    return run_folder.train_and_report(package, settings, data, tokenizer, train, on_evaluation=on_evaluation)


def prepare(settings: AnySettings) -> tuple[RunData, Any]:
    """Read and tokenize the data and return it with the tokenizer; nothing is trained and no framework is needed.

    Raises:
        InputError: The data cannot be read or is incompatible with the settings or the checkpoint.
        CheckpointError: The checkpoint cannot be read.
    """
    if isinstance(settings, QuestionAnsweringSettings):
        return question_answering.prepare(settings)
    return _prepare_texts(settings)


def _prepare_texts(settings: FinetuneSettings) -> tuple[LabelledData, Any]:
    checkpoint = open_checkpoint(settings.model)
    tokenizer = checkpoint.tokenizer()
    texts = labelled_run.read_texts(settings)
    label_names = labelled_run.matching_label_names(settings.model, tuple(texts.train.label_names))
    if label_names is not None:
        texts = texts.with_label_names(label_names)
    labelled_run.check_labels(settings.model, tuple(texts.train.label_names))
    return labelled_run.make_batches(settings, texts, tokenizer, checkpoint.transformer_config()), tokenizer


def plan(settings: AnySettings, framework: str) -> dict[str, Any]:
    """Return what a run would do, without training: data, batches, steps, parameters.

    Args:
        settings: Settings of the run.
        framework: "tf" or "jax".

    Raises:
        InputError: As for :func:`finetune`.
        CheckpointError: As for :func:`finetune`.
    """
    run_folder.check_output(settings, framework)
    data, _ = prepare(settings)
    config = open_checkpoint(settings.model).transformer_config(**data.overrides())
    return run_folder.plan_report(settings, data, count_parameters(config, data.head), framework)
