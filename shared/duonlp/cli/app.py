"""`duonlp`: run a task, continue a prompt, summarize files, train, tune and measure a model, compare frameworks, list models,
and the demo.

Everything heavy is imported inside the commands, so that `duonlp --help` is quick and needs no framework. A mistake a
person can mend is one line on standard error and exit status 2; `--debug` shows where it came from.
"""

import contextlib
import json
import os
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from duonlp import __version__
from duonlp.cli import benchmark as cli_benchmark
from duonlp.cli import distill as cli_distill
from duonlp.cli import evaluate as cli_evaluate
from duonlp.cli import finetune as cli_finetune
from duonlp.cli import tune as cli_tune
from duonlp.cli.common import Debug, Framework, Json, need_model, option_hint, parsed_options, print_json
from duonlp.errors import DuonlpError, InputError
from duonlp.util.frameworks import calm_frameworks, load_package, quiet_stdout
from duonlp.util.suggestions import choice

app = typer.Typer(
    name="duonlp",
    help="Hugging Face checkpoints in Keras 3 on TensorFlow (tf) and in Flax NNX on JAX (jax), with the same numbers.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.add_typer(cli_evaluate.app, name="evaluate")


def _version(asked: bool) -> None:
    if asked:
        typer.echo(f"duonlp {__version__}")
        raise typer.Exit()


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and leave.")
    ] = False,
) -> None:
    pass


@app.command()
def run(
    task: Annotated[
        str, typer.Argument(help="For example text-classification, text-generation or translation_en_to_fr.")
    ],
    texts: Annotated[
        list[str] | None, typer.Argument(metavar="[TEXT]...", help="Inputs; one that is a JSON object is read as such.")
    ] = None,
    model: Annotated[str, typer.Option("--model", "-m", help="A folder in Hugging Face layout, or a Hub id.")] = "",
    framework: Framework = "",
    input_file: Annotated[
        str, typer.Option("--input", "-i", help="A file of inputs: .json, .jsonl, or one text a line; - is stdin.")
    ] = "",
    option: Annotated[
        list[str] | None, typer.Option("--option", "-o", metavar="KEY=VALUE", help="An option of the task; repeat it.")
    ] = None,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Run a task on texts: arguments, a file, or standard input with one text a line."""
    from duonlp.tasks import ALIASES, TASKS, get_task

    get_task(task if task.startswith("translation_") else choice("task", task, [*TASKS, *ALIASES]))
    need_model(model)
    options = parsed_options(option or [])
    items = _inputs(texts or [], input_file)
    with quiet_stdout():
        package, name = load_package(framework)
        try:
            # An iterator, for it gives one result for each input; of a list of one, some tasks give that one's result.
            results = list(package.pipeline(task, model, **options)(iter(items)))
        except InputError as error:
            raise InputError(f"{error}{option_hint(error, options, get_task(task))}") from error
    if as_json:
        print_json({"task": task, "model": model, "framework": name, "results": results})
    else:
        from duonlp.cli.output import print_results

        print_results(items, results)


@app.command()
def generate(
    prompt: Annotated[str | None, typer.Argument(help="The text to continue; standard input by default.")] = None,
    model: Annotated[str, typer.Option("--model", "-m", help="A folder in Hugging Face layout, or a Hub id.")] = "",
    framework: Framework = "",
    max_new_tokens: Annotated[int | None, typer.Option(help="Tokens to add at most.")] = None,
    sample: Annotated[bool, typer.Option("--sample", help="Draw tokens at random; greedy by default.")] = False,
    temperature: Annotated[float | None, typer.Option(help="Below 1 plays safe, above 1 takes risks.")] = None,
    top_k: Annotated[int | None, typer.Option(help="Draw from so many of the most likely tokens; 0 for all.")] = None,
    top_p: Annotated[
        float | None, typer.Option(help="Draw from the most likely tokens up to this probability.")
    ] = None,
    beams: Annotated[int | None, typer.Option(help="Beam search with so many beams.")] = None,
    texts: Annotated[int | None, typer.Option("--return", help="How many texts, of samples or beams.")] = None,
    seed: Annotated[int | None, typer.Option(help="Of the random numbers: the same text again, in tf and jax.")] = None,
    stop: Annotated[list[str] | None, typer.Option(help="Stop after this text; repeat it for several.")] = None,
    option: Annotated[
        list[str] | None,
        typer.Option("--option", "-o", metavar="KEY=VALUE", help="Any other option of GenerationConfig; repeat it."),
    ] = None,
    choices: Annotated[int, typer.Option(help="Show so many of the most likely tokens at each step.")] = 0,
    plot: Annotated[str, typer.Option(help="Draw the first new token's distribution: .png, .svg or .pdf.")] = "",
    no_stream: Annotated[bool, typer.Option("--no-stream", help="Print the text when all of it is there.")] = False,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Continue a prompt, and print the text as it is decided."""
    from duonlp.cli import generate as cli_generate
    from duonlp.tasks import get_task

    need_model(model)
    flags = {
        "max_new_tokens": max_new_tokens, "do_sample": sample, "temperature": temperature, "top_k": top_k,
        "top_p": top_p, "num_beams": beams, "num_return_sequences": texts, "seed": seed, "stop_strings": stop,
    }  # fmt: skip
    options = cli_generate.merge_options(flags, parsed_options(option or []))
    settings = cli_generate.Settings(_prompt(prompt), model, options, choices, plot, stream=not no_stream)
    out = None if as_json else sys.stdout
    with quiet_stdout():
        package, name = load_package(framework)
        try:
            report = cli_generate.run(package, name, settings, out)
        except InputError as error:
            raise InputError(f"{error}{option_hint(error, options, get_task('text-generation'))}") from error
    if as_json:
        print_json(report)


@app.command()
def summarize(
    files: Annotated[
        list[str] | None, typer.Argument(metavar="FILE|-...", help="Text files, each a document; - is standard input.")
    ] = None,
    model: Annotated[str, typer.Option("--model", "-m", help="A folder in Hugging Face layout, or a Hub id.")] = "",
    framework: Framework = "",
    long: Annotated[
        str, typer.Option(help="Documents longer than the model: chunk (in parts, recursively), truncate or error.")
    ] = "",
    max_length: Annotated[int | None, typer.Option(help="Tokens of a summary at most.")] = None,
    min_length: Annotated[int | None, typer.Option(help="Tokens of a summary at least.")] = None,
    beams: Annotated[int | None, typer.Option(help="Beam search with so many beams; 1 is greedy.")] = None,
    language: Annotated[str, typer.Option(help="Of the documents, to split sentences; en by default.")] = "",
    chunks: Annotated[
        bool, typer.Option("--chunks", help="Show the summaries of a long document's parts, too.")
    ] = False,
    option: Annotated[
        list[str] | None, typer.Option("--option", "-o", metavar="KEY=VALUE", help="An option of the task; repeat it.")
    ] = None,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Summarize documents, however long, and print the summaries."""
    from duonlp.cli import generate as cli_generate
    from duonlp.cli import summarize as cli_summarize
    from duonlp.tasks import get_task

    need_model(model)
    flags = {
        "long_documents": choice("--long", long, cli_summarize.LONG) if long else None, "max_length": max_length,
        "min_length": min_length, "num_beams": beams, "language": language or None, "return_chunks": chunks,
    }  # fmt: skip
    options = cli_generate.merge_options(flags, parsed_options(option or []))
    documents = cli_summarize.read_documents(files or [])
    with quiet_stdout():
        package, name = load_package(framework)
        try:
            report = cli_summarize.run(package, name, model, documents, options)
        except InputError as error:
            raise InputError(f"{error}{option_hint(error, options, get_task('summarization'))}") from error
    if as_json:
        print_json(report)
    else:
        cli_summarize.write(report, sys.stdout)


@app.command()
def parity(
    model: Annotated[str, typer.Argument(help="A folder in Hugging Face layout, or a Hub id.")],
    head: Annotated[str, typer.Option(help="Which head; by default the one the checkpoint was saved with.")] = "",
    text: Annotated[
        list[str] | None, typer.Option(help="An input text; repeat it. A few sentences by default.")
    ] = None,
    frameworks: Annotated[str, typer.Option(help="Which to compare, separated by commas.")] = "tf,jax,torch",
    tolerance: Annotated[
        float, typer.Option(help="Largest difference allowed, relative to the largest output.")
    ] = 1e-5,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Compare a checkpoint across tfnlp, jaxnlp and Transformers: status 1 when they differ."""
    from duonlp.architectures import HEADS
    from duonlp.parity import FRAMEWORKS, compare

    if head:
        choice("head", head, HEADS)
    names = [choice("framework", name.strip(), FRAMEWORKS) for name in frameworks.split(",")]
    calm_frameworks()
    with quiet_stdout():
        report = compare(model, head or None, text or None, names, tolerance=tolerance)
    if as_json:
        print_json(report.to_dict())
    else:
        from duonlp.cli.output import print_report

        print_report(report)
    if not report.ok:
        raise typer.Exit(1)


@app.command()
def models(
    checkpoint: Annotated[str, typer.Argument(help="A folder or Hub id to describe; all families by default.")] = "",
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """List families, their heads and how many parameters they have, or describe one checkpoint."""
    from duonlp.cli import output as cli_output

    found = cli_output.describe_checkpoint(checkpoint) if checkpoint else cli_output.describe_families()
    if as_json:
        print_json(found)
    elif checkpoint:
        cli_output.print_checkpoint(found)
    else:
        cli_output.print_families(found)


@app.command()
def demo(
    output: Annotated[Path, typer.Option(help="Folder for the model, the loss curve and the figures.")] = Path("demo"),
    steps: Annotated[int, typer.Option(help="Optimizer steps.")] = 0,
    seconds: Annotated[float, typer.Option(help="Stop training after this long, even with steps left.")] = 0.0,
    corpus: Annotated[str, typer.Option(help="A folder of Python files; the standard library by default.")] = "",
    prompt: Annotated[list[str] | None, typer.Option(help="Code for the model to complete; repeat it.")] = None,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Pretrain a small code model with jaxnlp, then run it in both frameworks: status 1 when they differ."""
    from duonlp.cli import demo as cli_demo
    from duonlp.util import frameworks

    defaults = cli_demo.Settings()
    for name, value in (("steps", steps), ("seconds", seconds)):
        if value < 0:
            raise InputError(f"--{name} is {value}; it must be positive")
    settings = cli_demo.Settings(
        output=output,
        corpus=corpus or None,
        steps=steps or defaults.steps,
        seconds=seconds or defaults.seconds,
        prompts=tuple(prompt) if prompt else defaults.prompts,
    )
    calm_frameworks()
    for name in frameworks.PACKAGES:
        frameworks.require(name)
    with quiet_stdout() if as_json else contextlib.nullcontext():
        report = cli_demo.run(settings)
    if as_json:
        print_json(report)
    if not report["agree"]:
        raise typer.Exit(1)


for command in (cli_finetune.finetune, cli_distill.distill, cli_tune.tune, cli_benchmark.benchmark):
    app.command()(command)


def main(arguments: list[str] | None = None) -> None:
    """The entry point. Always raises SystemExit: 0 for success, 1 for a difference found, 2 for a mistake to mend."""
    arguments = sys.argv[1:] if arguments is None else arguments
    try:
        app(args=arguments, prog_name="duonlp")
    except DuonlpError as error:
        if "--debug" in arguments:
            raise
        print(f"duonlp: {_one_line(error)}", file=sys.stderr)
        raise SystemExit(2) from None
    except BrokenPipeError:  # the reader, such as `head`, has enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise SystemExit(0) from None
    except OSError as error:  # of writing: what is read has messages of its own
        if "--debug" in arguments or error.strerror is None:
            raise
        where = repr(error.filename) if error.filename else "standard output"
        print(
            f"duonlp: cannot write {where}: {error.strerror}; make room for results, or write elsewhere",
            file=sys.stderr,
        )
        raise SystemExit(2) from None


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())


def _inputs(texts: list[str], input_file: str) -> list:
    """The items to run on: from the arguments, a file, or standard input when it is no terminal."""
    if texts and input_file:
        raise InputError("texts were given both as arguments and with --input; give one of the two")
    if not texts and not input_file and sys.stdin is not None and not sys.stdin.isatty():
        input_file = "-"
    if texts:
        return [_item(text) for text in texts]
    if not input_file:
        raise InputError("no input; give texts as arguments, --input FILE, or lines on standard input")
    try:
        content = sys.stdin.read() if input_file == "-" else Path(input_file).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        why = getattr(error, "strerror", None) or "it is not UTF-8 text"
        raise InputError(f"cannot read --input {input_file!r}: {why}; give a text, .json or .jsonl file") from None
    lines = [line for line in content.splitlines() if line.strip()]
    try:
        if input_file.endswith(".json"):
            items = json.loads(content)
            items = items if isinstance(items, list) else [items]
        elif input_file.endswith(".jsonl"):
            items = [json.loads(line) for line in lines]
        else:
            items = [_item(line) for line in lines]
    except ValueError as error:
        raise InputError(
            f"--input {input_file!r} is not valid JSON ({error}); mend it, or give one text a line"
        ) from None
    if not items:
        name = "standard input" if input_file == "-" else repr(input_file)
        raise InputError(f"{name} holds no text; give texts as arguments, --input FILE, or lines on standard input")
    return items


def _prompt(given: str | None) -> str:
    """The prompt from the arguments, or all of standard input when it is no terminal, but for its last line break."""
    if given is None and sys.stdin is not None and not sys.stdin.isatty():
        try:
            given = sys.stdin.read().removesuffix("\n").removesuffix("\r")
        except UnicodeDecodeError:
            raise InputError("standard input is not UTF-8 text; give the prompt as an argument") from None
    if not given:
        raise InputError("no prompt; give a text as argument, or on standard input")
    return given


def _item(text: str) -> Any:
    """A JSON object for tasks whose input has parts, such as a question and its context; anything else is text."""
    if text.lstrip().startswith("{"):
        with contextlib.suppress(ValueError):
            return json.loads(text)
    return text


if __name__ == "__main__":
    main()
