"""Help texts: one phrase per option, with its default as the code has it."""

import re

import click
import pytest
import typer

from duonlp.cli.app import app
from duonlp.cli.demo import Settings as DemoSettings
from duonlp.cli.training import FLAGS
from duonlp.errors import InputError
from duonlp.runs.finetuning import FinetuneSettings
from duonlp.runs.question_answering import STRIDE, WINDOW, QuestionAnsweringSettings
from duonlp.tuning.runs import TuneSettings


def commands(group: click.Command, name: str = "") -> dict[str, click.Command]:
    """Return all commands by name, those of subgroups too."""
    if not hasattr(group, "commands"):
        return {name.strip(): group}
    return {
        key: value
        for part, command in group.commands.items()
        for key, value in commands(command, f"{name} {part}").items()
    }


COMMANDS = commands(typer.main.get_command(app))
SETTINGS = FinetuneSettings(model="m", data="d", output="o")


def default_in(text: str) -> str | None:
    """Return VALUE of "(default VALUE)"."""
    match = re.search(r"\(default ([^)]*)\)", text)
    return match and match[1]


def test_every_command_is_registered():
    assert set(COMMANDS) == {
        "run", "ask", "generate", "summarize", "finetune", "adapt", "fewshot", "distill", "tune", "benchmark",
        "parity", "labels", "augment", "questions", "models", "convert", "doctor", "quantize", "export", "demo", "evaluate code",
        "evaluate question-answering", "evaluate retrieval", "evaluate summarization",
    }  # fmt: skip


@pytest.mark.parametrize("name", COMMANDS)
def test_options_have_one_phrase_with_their_default(name):
    command = COMMANDS[name]
    assert command.help.endswith(".") and "\n" not in command.help
    for parameter in command.params:
        text = parameter.help
        if parameter.name == "help":
            continue
        assert text and text.endswith((".", ".)")), f"{name} {parameter.name}: {text}"
        assert "[" not in text, f"{name} {parameter.name}: rich reads {text!r} as markup"
        if isinstance(parameter.default, (int, float, str)) and parameter.default and parameter.default is not True:
            assert default_in(text) is not None, f"{name} {parameter.name}: {text}"
            assert type(parameter.default)(default_in(text)) == parameter.default, f"{name} {parameter.name}: {text}"


def test_defaults_of_settings_are_those_of_the_dataclasses():
    params = {
        name: {param.name: param.help for param in COMMANDS[name].params} for name in ("finetune", "tune", "demo")
    }
    for flag, path in FLAGS.items():
        value = SETTINGS
        for part in path.split("."):
            value = getattr(value, part)
        stated = default_in(params["finetune"][flag])
        assert stated is None or type(value)(stated) == value, flag
    assert default_in(params["finetune"]["seed"]) == str(SETTINGS.seed) == str(SETTINGS.fit.seed)
    reader = QuestionAnsweringSettings(model="m", data="d", output="o")
    for flag, value in (("epochs", reader.fit.epochs), ("batch_size", reader.batch_size)):
        assert f"; {value} " in params["finetune"][flag]
    assert f"({WINDOW})" in params["finetune"]["max_length"] and f"default {STRIDE}" in params["finetune"]["doc_stride"]
    assert f"default {reader.fold_by}" in params["finetune"]["fold_by"]
    tune = TuneSettings()
    assert default_in(params["tune"]["trials"]) == str(tune.trials) and default_in(params["tune"]["seed"]) == str(
        tune.seed
    )
    assert (default_in(params["tune"]["objective"]),) == tune.objective
    demo = DemoSettings()
    assert int(default_in(params["demo"]["steps"])) == demo.steps
    assert float(default_in(params["demo"]["seconds"])) == demo.seconds


def test_remedies_name_flags_that_exist():
    from duonlp.cli.common import REMEDIES, describe_error

    flags = {
        flag
        for command in COMMANDS.values()
        for param in command.params
        for flag in (*param.opts, *param.secondary_opts)
    }
    for argument, remedy in REMEDIES.items():
        assert set(re.findall(r"--[a-z-]+", remedy)) <= flags
        error = InputError("a.csv has\nno label", remedy="pass it", argument=argument)
        assert describe_error(error) == f"a.csv has no label; {remedy}"
