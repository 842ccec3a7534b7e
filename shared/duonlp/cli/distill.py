"""`duonlp distill`: a small classifier that learns from a large one, from flags or a TOML file."""

from typing import Annotated

import typer

from duonlp.cli import training as flags
from duonlp.cli.common import Debug, Framework, Json, SettingsFile, SettingsOption
from duonlp.errors import InputError

MORE = {
    "teacher": "teacher", "student": "student", "layers": "layers", "layer_list": "layer_list",
    "alpha": "distillation.alpha", "temperature": "distillation.temperature",
    "cache_teacher_logits": "cache_teacher_logits",
}  # fmt: skip


def distill(
    teacher: Annotated[
        str, typer.Option("--teacher", "-t", help="A fine-tuned checkpoint, such as the best/ of a run.")
    ] = "",
    student: Annotated[str, typer.Option(help="The checkpoint that learns: a folder or a Hub id.")] = "",
    layers: Annotated[
        int | None, typer.Option(help="Instead, make the student of so many of the teacher's layers.")
    ] = None,
    layer_list: Annotated[
        str, typer.Option(help="Instead, make it of these layers, from 0 on, such as 0,2,5.")
    ] = "",
    data: flags.Data = "",
    output: flags.Output = "",
    framework: Framework = "",
    config: SettingsFile = "",
    alpha: Annotated[float | None, typer.Option(help="Share of the loss on the labels; 0.5 by default.")] = None,
    temperature: Annotated[float | None, typer.Option(help="What logits are divided by; 2 by default.")] = None,
    cache_teacher_logits: Annotated[
        bool | None,
        typer.Option(
            "--cache-teacher-logits/--no-cache-teacher-logits", show_default=False,
            help="Compute the teacher's logits once, and keep them on disk.",
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
    label_column: flags.LabelColumn = None,
    data_config: flags.DataConfig = None,
    out_of_scope: flags.OutOfScope = None,
    patience: flags.Patience = None,
    tensorboard: flags.TensorBoard = None,
    option: SettingsOption = None,
    plot: flags.Plot = "",
    dry_run: flags.DryRun = False,
    as_json: Json = False,
    debug: Debug = False,
) -> None:  # fmt: skip
    """Train a small student on labels and on what a teacher says; what is written is as of finetune.

    Losses on hidden states, attentions and relations are in the TOML file, [[distillation.losses]] each.
    """
    from duonlp.runs import distillation as training

    given = locals() | {"layer_list": _layer_list(layer_list)}
    settings = flags.settings_of(training.DistillSettings, config, given, option, MORE)
    flags.carry_out(training, training.distill, settings, plot=plot, dry_run=dry_run, as_json=as_json)


def _layer_list(text: str) -> list[int] | None:
    """ "0,2,5" -> [0, 2, 5]."""
    try:
        return [int(number) for number in text.split(",")] if text else None
    except ValueError:
        raise InputError(f"--layer-list is {text!r}; give numbers of layers, such as 0,2,5") from None
