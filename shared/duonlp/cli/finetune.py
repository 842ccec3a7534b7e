"""`duonlp finetune`: a classifier of labelled texts, from flags or a TOML file."""

from typing import Annotated

import typer

from duonlp.cli import training as flags
from duonlp.cli.common import Debug, Framework, Json, SettingsFile, SettingsOption


def finetune(
    model: Annotated[
        str, typer.Option("--model", "-m", help="The checkpoint to start from: a folder or a Hub id.")
    ] = "",
    data: flags.Data = "",
    output: flags.Output = "",
    framework: Framework = "",
    config: SettingsFile = "",
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
) -> None:
    """Fine-tune a checkpoint to classify texts; the best model, its scores and the settings to repeat it go to --output."""
    from duonlp.runs import finetuning as training

    settings = flags.settings_of(training.FinetuneSettings, config, locals(), option, {"model": "model"})
    flags.carry_out(training, training.finetune, settings, plot=plot, dry_run=dry_run, as_json=as_json)
