"""Fine-tuning a classifier on labelled texts, in either framework, as one run that can be repeated."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from duonlp.checkpoints.checkpoint import open_checkpoint
from duonlp.errors import InputError
from duonlp.parameters import count_parameters
from duonlp.runs import folder as run_folder
from duonlp.runs import labelled as labelled_run
from duonlp.runs.labelled import LabelledData, LabelledRunSettings


@dataclass(frozen=True, kw_only=True)
class FinetuneSettings(LabelledRunSettings):
    """What a fine-tuning is made of, besides LabelledRunSettings.

    model: the checkpoint to start from: a folder in Hugging Face layout, or a Hub id. A classification head that it has for
        the same labels goes on; otherwise the head starts afresh.
    """

    model: str

    what: ClassVar[str] = "duonlp finetune"
    command: ClassVar[str] = "finetune"

    def __post_init__(self):
        if not self.model:
            raise InputError("model is empty; give --model with a folder in Hugging Face layout, or a Hub id")
        super().__post_init__()


def finetune(
    package,
    settings: FinetuneSettings,
    *,
    on_evaluation: Callable[[int, Mapping[str, float]], None] | None = None,
    console: Any = True,
) -> dict[str, Any]:
    """Fine-tunes a checkpoint on labelled texts, keeps the best model, and reports what it is worth.

    The same settings again go on where the run was stopped; a finished run is evaluated again, and not trained.

    Args:
        package: tfnlp or jaxnlp.
        settings: of the run.
        on_evaluation: told the steps that are done, and the scores, at each evaluation; what it raises ends the training.
        console: whether to show progress, or the rich Console to show it on; True is the standard error.

    Returns:
        The report that results.json has: "metrics" of the best model by name, "at_threshold" (see threshold_scores), "best",
        "steps", "examples", "seconds" (of training), "examples_per_second", "history" (each evaluation), "data", "parameters",
        "bytes" (of the weights on disk), "settings", "machine".

    Raises:
        InputError: settings, data or an output folder that do not fit; before anything is computed.
        CheckpointError: the checkpoint cannot be read.
        NonFiniteLossError: the loss is not a number; the best model and the last checkpoint are from before.
    """
    run_folder.check_output(settings, run_folder.framework_of(package))
    data, tokenizer = prepare(settings)
    model, is_new = labelled_run.load_classifier(
        package, settings.model, data.label_names, data.multi_label, settings.dtype, settings.seed
    )
    fit = run_folder.training_of(package).fit
    say = run_folder.speaker(console)
    say(
        f"{len(data.batches.labels)} texts, {len(data.label_names)} labels, {'a new head' if is_new else 'its own head'}"
    )

    def train(evaluate, **options):
        return fit(
            model, data.batches, settings.fit, settings.folder, evaluate=evaluate, data=data.describe(),
            log={"console": console, "tensorboard": settings.tensorboard}, **options,
        )  # fmt: skip

    return run_folder.carried_out(package, settings, data, tokenizer, train, on_evaluation=on_evaluation)


def prepare(settings: FinetuneSettings) -> tuple[LabelledData, Any]:
    """(the data, the tokenizer), read and tokenised; nothing is trained, and no framework is needed."""
    checkpoint = open_checkpoint(settings.model)
    tokenizer = checkpoint.tokenizer()
    texts = labelled_run.read_texts(settings)
    own = labelled_run.own_labels(settings.model, tuple(texts[0].label_names))
    if own is not None:
        texts = tuple(None if each is None else labelled_run.with_label_names(each, own) for each in texts)
    labelled_run.check_labels(settings.model, tuple(texts[0].label_names))
    return labelled_run.batched(settings, texts, tokenizer, checkpoint.transformer_config()), tokenizer


def plan(settings: FinetuneSettings, framework: str) -> dict[str, Any]:
    """What a run would do, without doing it: data, labels, batches, steps, parameters.

    Raises:
        InputError, CheckpointError: as of :func:`finetune`.
    """
    run_folder.check_output(settings, framework)
    data, _ = prepare(settings)
    config = open_checkpoint(settings.model).transformer_config(num_labels=len(data.label_names))
    return run_folder.planned(settings, data, count_parameters(config, "sequence-classification"))
