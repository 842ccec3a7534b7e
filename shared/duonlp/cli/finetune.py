"""``duonlp finetune``: train a classifier on labeled texts, or a reader on questions about contexts.

The output folder receives the best model (best/), its scores (results.json) and settings.toml, which repeats the run.
"""

from typing import Annotated

from duonlp.cli import training as flags
from duonlp.cli.common import Debug, Framework, Json, SettingsFile, SettingsOption, cli_option


def finetune(
    task: Annotated[str, cli_option(help="text-classification (the default) or question-answering.")] = "",
    model: Annotated[
        str, cli_option("--model", "-m", help="Checkpoint to start from: a folder or a Hub id (required).")
    ] = "",
    data: Annotated[
        str,
        cli_option(
            "--data", "-d", help="Labeled texts, or SQuAD or SubjQA files: a file, folder or Hub id (required)."
        ),
    ] = "",
    validation_data: Annotated[
        str | None, cli_option(help="Questions to validate on, if --data is one file: a file, a folder or a Hub id.")
    ] = None,
    output: flags.Output = "",
    framework: Framework = "",
    config: SettingsFile = "",
    epochs: Annotated[
        int | None, cli_option(help="Passes over the training data (default 4); 3 for question answering.")
    ] = None,
    steps: flags.Steps = None,
    learning_rate: flags.LearningRate = None,
    batch_size: Annotated[
        int | None, cli_option(help="Texts per step (default 48); 16 windows for question answering.")
    ] = None,
    max_length: Annotated[
        int | None,
        cli_option(help="Tokens of a text (default: the model's maximum), or of a window of a context (384)."),
    ] = None,
    doc_stride: Annotated[
        int | None, cli_option(help="Tokens by which the windows of a context overlap, by default 128.")
    ] = None,
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
    folds: Annotated[
        int | None, cli_option(help="Cross-validate question answering over this many parts of the data.")
    ] = None,
    fold_by: Annotated[
        str | None, cli_option(help="Column whose values are never on both sides of a fold, by default title.")
    ] = None,
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
    """Fine-tune a checkpoint to classify texts or to answer questions about contexts."""
    from duonlp.runs import cross_validation, finetuning

    given = {name: value for name, value in locals().items() if name not in ("cross_validation", "finetuning")}
    cls = finetuning.TASKS[flags.task_of(config, option, task, finetuning.TASKS)]
    more = ("model", "task", "validation_data", "doc_stride", "folds", "fold_by")
    settings = flags.read_settings(cls, config, given, option, {name: name for name in more}, finetuning.TASKS)
    training, run = finetuning, finetuning.finetune
    if cross_validation.is_cross_validation(settings):
        training, run = cross_validation, cross_validation.cross_validate
    flags.run_training(training, run, settings, plot=plot, dry_run=dry_run, as_json=as_json)
