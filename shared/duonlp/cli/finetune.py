"""``duonlp finetune``: train a classifier on labeled texts.

The output folder receives the best model (best/), its scores (results.json) and settings.toml, which repeats the run.
"""

from typing import Annotated

from duonlp.cli import training as flags
from duonlp.cli.common import Debug, Framework, Json, SettingsFile, SettingsOption, cli_option


def finetune(
    model: Annotated[
        str, cli_option("--model", "-m", help="Checkpoint to start from: a folder or a Hub id (required).")
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
    encoding: flags.Encoding = None,
    quoting: flags.Quoting = None,
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
    """Fine-tune a checkpoint to classify texts."""
    from duonlp.runs import finetuning as training

    settings = flags.read_settings(training.FinetuneSettings, config, locals(), option, {"model": "model"})
    flags.run_training(training, training.finetune, settings, plot=plot, dry_run=dry_run, as_json=as_json)
