"""``duonlp adapt``: continue masked-language-model pretraining on the texts of a domain.

The output folder receives the adapted model (best/), its loss (results.json) and settings.toml, which repeats the run.
"""

from typing import Annotated

from duonlp.cli import training as flags
from duonlp.cli.common import Debug, Framework, Json, SettingsFile, SettingsOption, cli_option


def adapt(
    model: Annotated[
        str, cli_option("--model", "-m", help="Checkpoint to start from: a folder or a Hub id (required).")
    ] = "",
    data: Annotated[
        str, cli_option("--data", "-d", help="Texts, labeled or not: a file, a folder or a Hub id (required).")
    ] = "",
    output: flags.Output = "",
    framework: Framework = "",
    config: SettingsFile = "",
    epochs: Annotated[int | None, cli_option(help="Passes over the texts (default 3).")] = None,
    steps: flags.Steps = None,
    learning_rate: Annotated[float | None, cli_option(help="Peak learning rate (default 1e-4).")] = None,
    batch_size: Annotated[int | None, cli_option(help="Texts per step (default 32).")] = None,
    max_length: Annotated[int | None, cli_option(help="Truncate texts to this many tokens (default 128).")] = None,
    text_column: flags.TextColumn = None,
    text_template: flags.TextTemplate = None,
    cleaning: Annotated[str, cli_option(help="Filter the texts: none, prose or code (default none).")] = "",
    held_out: Annotated[
        float | None, cli_option(help="Share of texts that the loss is evaluated on (default 0.05).")
    ] = None,
    probability: Annotated[float | None, cli_option(help="Share of tokens to predict (default 0.15).")] = None,
    whole_words: Annotated[
        bool | None, cli_option("--whole-words/--single-tokens", help="Mask whole words (default: single tokens).")
    ] = None,
    dtype: flags.Dtype = None,
    seed: flags.Seed = None,
    limit: flags.Limit = None,
    encoding: flags.Encoding = None,
    quoting: flags.Quoting = None,
    tensorboard: flags.TensorBoard = None,
    option: SettingsOption = None,
    plot: flags.Plot = "",
    dry_run: flags.DryRun = False,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Adapt a checkpoint to the texts of a domain before it is fine-tuned, one row per text."""
    given = dict(locals())
    from duonlp.runs import adaptation

    names = ("model", "cleaning", "held_out", "probability", "whole_words")
    settings = flags.read_settings(adaptation.AdaptationSettings, config, given, option, {name: name for name in names})
    flags.run_training(adaptation, adaptation.adapt, settings, plot=plot, dry_run=dry_run, as_json=as_json)
