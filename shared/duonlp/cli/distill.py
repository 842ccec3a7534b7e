"""``duonlp distill``: train a small classifier to imitate a large one.

The student learns from the labels and from the teacher's logits. Losses on hidden states, attentions and relations are
set in the TOML file, one table [[distillation.losses]] each. The output folder receives the same files as with finetune.
"""

from typing import Annotated

from duonlp.cli import training as flags
from duonlp.cli.common import Debug, Framework, Json, SettingsFile, SettingsOption, cli_option
from duonlp.errors import InputError

MORE_FLAGS = {
    "teacher": "teacher", "student": "student", "layers": "layers", "layer_list": "layer_list",
    "alpha": "distillation.alpha", "temperature": "distillation.temperature",
    "cache_teacher_logits": "cache_teacher_logits",
}  # fmt: skip
"""Flag names to paths of settings, besides those of ``duonlp.cli.training``."""


def distill(
    teacher: Annotated[
        str, cli_option("--teacher", "-t", help="Fine-tuned checkpoint, such as the best/ of a run (required).")
    ] = "",
    student: Annotated[str, cli_option(help="Checkpoint to train: a folder or a Hub id.")] = "",
    layers: Annotated[
        int | None, cli_option(help="Instead of --student: copy this many of the teacher's layers, evenly spaced.")
    ] = None,
    layer_list: Annotated[
        str, cli_option(help="Instead of --student: copy these of the teacher's layers, counted from 0, such as 0,2,5.")
    ] = "",
    data: flags.Data = "",
    output: flags.Output = "",
    framework: Framework = "",
    config: SettingsFile = "",
    alpha: Annotated[float | None, cli_option(help="Weight of the loss on the labels, 0 to 1 (default 0.5).")] = None,
    temperature: Annotated[
        float | None, cli_option(help="Softmax temperature of the soft targets (default 2).")
    ] = None,
    cache_teacher_logits: Annotated[
        bool | None,
        cli_option(
            "--cache-teacher-logits/--no-cache-teacher-logits",
            help="Compute the teacher's logits once and keep them on disk (default: no).",
        ),
    ] = None,
    epochs: flags.Epochs = None,
    steps: flags.Steps = None,
    learning_rate: flags.LearningRate = None,
    batch_size: flags.BatchSize = None,
    max_length: flags.MaxLength = None,
    dtype: flags.Dtype = None,
    seed: flags.Seed = None,
    limit: flags.Limit = None,
    train_split: flags.TrainSplit = None,
    validation_split: flags.ValidationSplit = None,
    text_column: flags.TextColumn = None,
    text_template: flags.TextTemplate = None,
    label_column: flags.LabelColumn = None,
    label_separator: flags.LabelSeparator = None,
    label_map: flags.LabelMap = None,
    most_frequent: flags.MostFrequent = None,
    class_names: flags.ClassNames = None,
    column_names: flags.ColumnNames = None,
    unlabelled: flags.Unlabelled = None,
    encoding: flags.Encoding = None,
    quoting: flags.Quoting = None,
    data_config: flags.DataConfig = None,
    out_of_scope: flags.OutOfScope = None,
    patience: flags.Patience = None,
    prune: flags.Prune = None,
    prune_method: flags.PruneMethod = None,
    prune_structure: flags.PruneStructure = None,
    tensorboard: flags.TensorBoard = None,
    quantization_aware: flags.QuantizationAware = "",
    option: SettingsOption = None,
    plot: flags.Plot = "",
    dry_run: flags.DryRun = False,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Distill a fine-tuned classifier into a smaller student."""
    from duonlp.runs import distillation as training

    values = locals() | {"layer_list": _parse_layers(layer_list)}
    settings = flags.read_settings(training.DistillSettings, config, values, option, MORE_FLAGS)
    flags.run_training(training, training.distill, settings, plot=plot, dry_run=dry_run, as_json=as_json)


def _parse_layers(text: str) -> list[int] | None:
    """Parse a list of layers: "0,2,5" -> [0, 2, 5]."""
    try:
        return [int(number) for number in text.split(",")] if text else None
    except ValueError:
        raise InputError(f"--layer-list is {text!r}; give comma-separated layer numbers, such as 0,2,5") from None
