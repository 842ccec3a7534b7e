"""``duonlp generate``: a prompt continued on the terminal, with the tokens the model chose among."""

import secrets
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TextIO

import typer

from duonlp.cli.common import (
    Debug,
    Framework,
    Json,
    Model,
    cli_option,
    merge_options,
    need_model,
    parsed_options,
    print_json,
    suggest_options,
)
from duonlp.errors import InputError
from duonlp.util.console import plain_console
from duonlp.util.frameworks import load_package, quiet_stdout

if TYPE_CHECKING:
    from duonlp.typing import Engine

LOADING = ("dtype", "param_dtype", "revision")
"""Options that decide how the checkpoint is loaded."""

FORMATTING = ("return_full_text", "return_tensors", "clean_up_tokenization_spaces")
"""Options of the pipeline that only change its results, which the command does not print."""

TITLE_WIDTH = 60
"""Characters of a prompt shown in a figure's title."""


def generate(
    prompt: Annotated[str | None, typer.Argument(help="Text to continue (default: standard input).")] = None,
    model: Model = "",
    framework: Framework = "",
    max_new_tokens: Annotated[
        int | None, cli_option(help="Maximum number of new tokens (default: the model's).")
    ] = None,
    sample: Annotated[bool, cli_option("--sample", help="Sample tokens (default: greedy decoding).")] = False,
    temperature: Annotated[
        float | None, cli_option(help="Sampling temperature; below 1 is more conservative (default: the model's).")
    ] = None,
    top_k: Annotated[
        int | None, cli_option(help="Sample from the k most likely tokens, 0 for all (default: the model's).")
    ] = None,
    top_p: Annotated[
        float | None,
        cli_option(help="Sample from the fewest tokens with this total probability (default: the model's)."),
    ] = None,
    beams: Annotated[int | None, cli_option(help="Number of beams of beam search (default: the model's).")] = None,
    texts: Annotated[
        int | None, cli_option("--return", help="Number of texts, with --sample or --beams (default 1).")
    ] = None,
    seed: Annotated[
        int | None, cli_option(help="Sampling seed; gives the same text in tf and jax (default: random).")
    ] = None,
    stop: Annotated[list[str] | None, cli_option(help="Stop after this text; repeatable.")] = None,
    option: Annotated[
        list[str] | None,
        cli_option("--option", "-o", metavar="KEY=VALUE", help="Any other GenerationConfig option; repeatable."),
    ] = None,
    choices: Annotated[int, cli_option(help="List the N most likely tokens of each step (default 0).")] = 0,
    plot: Annotated[
        str, cli_option(help="Plot the distribution of the first new token: a .png, .svg or .pdf file.")
    ] = "",
    no_stream: Annotated[bool, cli_option("--no-stream", help="Print the text when it is complete.")] = False,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Continue a prompt and print the text while it is generated."""
    need_model(model)
    flags = {
        "max_new_tokens": max_new_tokens, "do_sample": sample, "temperature": temperature, "top_k": top_k,
        "top_p": top_p, "num_beams": beams, "num_return_sequences": texts, "seed": seed, "stop_strings": stop,
    }  # fmt: skip
    options = merge_options(flags, parsed_options(option or []))
    settings = Settings(read_prompt(prompt), model, options, choices, plot, stream=not no_stream)
    out = None if as_json else sys.stdout
    with quiet_stdout(), suggest_options("text-generation", options):
        package, name = load_package(framework)
        report = continue_prompt(package, name, settings, out)
    if as_json:
        print_json(report)


@dataclass(frozen=True)
class Settings:
    """Settings of one call of ``duonlp generate``.

    Attributes:
        prompt: The text to continue.
        model: A folder in Hugging Face layout, or a Hub id.
        options: Options of the text-generation pipeline, and those of LOADING.
        choices: How many of the most likely tokens to list for each step; 0 for no list.
        plot: A file for the figure of the first new token's distribution; "" for none.
        stream: Whether to print text as soon as it is final, where the decoding strategy allows it.
    """

    prompt: str
    model: str
    options: Mapping[str, Any] = field(default_factory=dict)
    choices: int = 0
    plot: str = ""
    stream: bool = True


def read_prompt(prompt: str | None) -> str:
    """Return the prompt argument, or standard input without its final line break unless that is a terminal.

    Raises:
        InputError: There is no prompt, or standard input is not UTF-8.
    """
    if prompt is None and sys.stdin is not None and not sys.stdin.isatty():
        try:
            prompt = sys.stdin.read().removesuffix("\n").removesuffix("\r")
        except UnicodeDecodeError:
            raise InputError("standard input is not UTF-8 text; give the prompt as an argument") from None
    if not prompt:
        raise InputError("no prompt; give a text as an argument or on standard input")
    return prompt


def continue_prompt(package: "Engine", framework: str, settings: Settings, out: TextIO | None) -> dict[str, Any]:
    """Continue the prompt.

    Args:
        package: tfnlp or jaxnlp.
        framework: The framework's name, for the report.
        settings: The prompt, the model and their options.
        out: Where text and tables are printed; None to print nothing.

    Returns:
        The report that --json prints; without "texts" if the text was streamed.

    Raises:
        InputError: An option is unknown or has an invalid value, or the prompt leaves no room for new tokens.
        CheckpointError: The checkpoint cannot be found or read.
    """
    from duonlp.checkpoints.checkpoint import Checkpoint, read_unchanged

    loading = {name: settings.options[name] for name in LOADING if name in settings.options}
    options = {name: value for name, value in settings.options.items() if name not in LOADING}
    for name in FORMATTING:
        if options.get(name) is not None:
            raise InputError(
                f"{name} has no effect on what this command prints; omit it (--json lists ids and new text)"
            )
    if settings.choices < 0:
        raise InputError(f"--choices is {settings.choices}; it must be 0 or the number of tokens to list for each step")
    if settings.plot:
        check_plot(settings.plot, options)
    checkpoint, tokenizer = read_unchanged(settings.model, Checkpoint.tokenizer, loading.pop("revision", None))
    model = package.AutoModelForCausalLM.from_pretrained(checkpoint, **loading)
    checkpoint.close()
    pipe = package.pipeline("text-generation", model, tokenizer=tokenizer, **options)
    config = pipe.options.resolved
    if config.do_sample and config.seed is None:
        options["seed"] = secrets.randbits(31)  # reported, so that the text can be reproduced
        pipe.options = pipe.task.options(pipe.options, seed=options["seed"])
    report = {"prompt": settings.prompt, "model": settings.model, "framework": framework, "options": options}
    several = config.num_beams > 1 or config.num_return_sequences > 1
    if settings.stream and out is not None and not several and not settings.choices:
        write_stream(pipe, settings.prompt, out)
    else:
        texts, choices = generate_texts(pipe, model, settings.prompt, settings.choices)
        report |= {"texts": texts} | ({"choices": choices} if settings.choices else {})
        if out is not None:
            write_texts(texts, choices, out)
    if settings.plot:
        plot_first_token(pipe, model, settings)
        if out is not None:
            print(f"Wrote the distribution of the first new token to {settings.plot}", file=out)
    return report


def write_stream(pipe: Any, prompt: str, out: TextIO) -> None:
    """Write the prompt, then the new text piece by piece."""
    pieces = pipe.stream(prompt)  # raises for invalid options before anything is printed
    out.write(prompt)
    out.flush()
    for piece in pieces:
        out.write(piece)
        out.flush()
    out.write("\n")
    out.flush()


def generate_texts(
    pipe: Any, model: Any, prompt: str, choices: int
) -> tuple[list[dict[str, Any]], list[list[dict[str, Any]]]]:
    """Generate the texts with their log probabilities and the tokens they were chosen among.

    Log probabilities are those of the distributions that tokens were chosen from, that is after temperature, top-k and
    the other processors.

    Args:
        pipe: A text-generation pipeline.
        model: The pipeline's model.
        prompt: The text to continue.
        choices: How many of the most likely tokens to return for each step.

    Returns:
        The texts, best first, and for each text its :func:`duonlp.generation.choices.top_choices` (none if `choices`
        is 0).
    """
    import numpy as np

    from duonlp.generation.choices import top_choices

    task, options = pipe.task, pipe.options
    ((example,),) = task.encode([prompt], options)
    ids = example.inputs["input_ids"]
    output = model.generate(
        ids[None], np.ones((1, len(ids)), np.int32), **task.arguments(example.group, options),
        return_dict_in_generate=True, output_scores=choices > 0, output_logits=False,
    )  # fmt: skip
    beams = "beam_indices" in output
    texts, chosen_among = [], []
    for row, sequence in enumerate(np.asarray(output["sequences"])):
        new = task.end_detector(ids, options).trim(sequence[len(ids) :])
        logprobs = np.asarray(output["logprobs"][row][: len(new)], np.float64)
        text = task.tokenizer.decode(new.tolist(), skip_special_tokens=options.skip_special_tokens)
        texts.append(
            {
                "generated_text": prompt + text,
                "new_text": text,
                "token_ids": new.tolist(),
                "logprobs": logprobs.tolist(),
                "logprob": float(logprobs.sum()),
                "perplexity": float(np.exp(-logprobs.mean())),
            }
            | ({"sequences_score": float(output["sequences_scores"][row])} if beams else {})
        )
        if choices:
            steps = np.arange(len(new))
            rows = output["beam_indices"][row][: len(new)] if beams else np.full(len(new), row)
            chosen_among.append(top_choices(output["scores"][steps, rows], new, task.tokenizer, choices))
    return texts, chosen_among


def write_texts(texts: Sequence[Mapping[str, Any]], choices: Sequence[list[dict[str, Any]]], out: TextIO) -> None:
    """Write each text in full, followed by the table of its choices if there is one."""
    from duonlp.generation.choices import choices_table

    for number, text in enumerate(texts):
        if len(texts) > 1:
            print(f"--- text {number + 1} of {len(texts)} ---", file=out)
        print(text["generated_text"], file=out, flush=True)
        if choices:
            console = plain_console(file=out)
            console.print()
            console.print(choices_table(choices[number]))
            score = f", beam score {text['sequences_score']:.4f}" if "sequences_score" in text else ""
            console.print(
                f"log probability {text['logprob']:.4f}, perplexity {text['perplexity']:.4f} per token{score}",
                highlight=False,
            )


def check_plot(path: str, options: Mapping[str, Any]) -> None:
    """Raise InputError for a figure that cannot be saved, before anything is loaded."""
    import numpy as np

    from duonlp.generation import GenerationConfig, plots

    GenerationConfig(**{name: options[name] for name in ("temperature", "top_k", "top_p") if name in options})
    plots.check_arguments(np.zeros(1), Path(path), [1.0], None, None)


def plot_first_token(pipe: Any, model: Any, settings: Settings) -> None:
    """Plot the distribution of the token after the prompt, with the cut-offs of top_k and top_p that were given."""
    import numpy as np

    from duonlp.generation import GenerationConfig
    from duonlp.generation.plots import plot_next_token

    ((example,),) = pipe.task.encode([settings.prompt], pipe.options)
    ids = example.inputs["input_ids"][None]
    config = GenerationConfig(max_new_tokens=1, output_logits=True)  # without the model's own processors
    logits = model.generate(ids, np.ones_like(ids), config)["logits"][0, 0]
    given = pipe.options.explicit
    temperatures = {"temperatures": sorted({1.0, float(given["temperature"])})} if "temperature" in given else {}
    title = " ".join(settings.prompt.split())
    title = title if len(title) <= TITLE_WIDTH else "..." + title[3 - TITLE_WIDTH :]
    plot_next_token(
        logits, settings.plot, tokenizer=pipe.tokenizer, title=f"after {title!r}",
        top_k=given.get("top_k") or None, top_p=given.get("top_p"), **temperatures,
    )  # fmt: skip
