"""The body of `duonlp generate`: one prompt continued on the terminal, with what the model chose among."""

import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TextIO

import numpy as np

from duonlp.checkpoints.checkpoint import open_checkpoint
from duonlp.errors import InputError
from duonlp.generation import GenerationConfig
from duonlp.generation.choices import choices_table, top_choices

LOADING = ("dtype", "param_dtype", "revision")
"""Options that say how the checkpoint is loaded."""


@dataclass(frozen=True)
class Settings:
    """What was asked for on the command line.

    options: of the text-generation pipeline, and those of LOADING.
    choices: list so many of the most likely tokens of each step; 0 for none.
    plot: a picture of the first new token's distribution; "" for none.
    stream: print text as soon as it is decided, where that can be.
    """

    prompt: str
    model: str
    options: Mapping[str, Any] = field(default_factory=dict)
    choices: int = 0
    plot: str = ""
    stream: bool = True


def merge_options(flags: Mapping[str, Any], options: Mapping[str, Any]) -> dict[str, Any]:
    """The flags that were given, by the option each stands for, and the pairs of --option.

    Raises:
        InputError: an option is given both ways.
    """
    flags = {name: value for name, value in flags.items() if value is not None and value is not False and value != []}
    for name in flags.keys() & options.keys():
        raise InputError(f"{name} is given twice, by its own flag and by --option {name}=...; give one of the two")
    return flags | dict(options)


def run(package, framework: str, settings: Settings, out: TextIO | None) -> dict[str, Any]:
    """Continue the prompt.

    Args:
        package: tfnlp or jaxnlp.
        framework: its name for the report.
        out: where text and tables go; None for nowhere.

    Returns:
        the report that --json prints; without "texts" where the text was streamed.

    Raises:
        InputError: an unknown option, a value that is not allowed, a prompt that leaves no room.
        CheckpointError: the checkpoint cannot be found or read.
    """
    loading = {name: settings.options[name] for name in LOADING if name in settings.options}
    options = {name: value for name, value in settings.options.items() if name not in LOADING}
    if settings.choices < 0:
        raise InputError(
            f"--choices is {settings.choices}; it must be 0 or more: how many tokens to list for each step"
        )
    if settings.plot:
        check_plot(settings.plot, options)
    checkpoint = open_checkpoint(settings.model, loading.pop("revision", None))
    model = package.AutoModelForCausalLM.from_pretrained(checkpoint.folder, **loading)
    pipe = package.pipeline("text-generation", model, tokenizer=checkpoint.tokenizer(), **options)
    config = pipe.options.resolved
    if config.do_sample and config.seed is None:
        options["seed"] = secrets.randbits(31)  # so that the report says how to get the same text again
        pipe.options = pipe.task.options(pipe.options, seed=options["seed"])
    report = {"prompt": settings.prompt, "model": settings.model, "framework": framework, "options": options}
    several = config.num_beams > 1 or config.num_return_sequences > 1
    if settings.stream and out is not None and not several and not settings.choices:
        write_stream(pipe, settings.prompt, out)
    else:
        texts, choices = generate(pipe, model, settings.prompt, settings.choices)
        report |= {"texts": texts} | ({"choices": choices} if settings.choices else {})
        if out is not None:
            write_texts(texts, choices, out)
    if settings.plot:
        plot_first_token(pipe, model, settings)
        if out is not None:
            print(f"The distribution of the first new token is in {settings.plot}", file=out)
    return report


def write_stream(pipe, prompt: str, out: TextIO) -> None:
    """The prompt, and the new text piece by piece."""
    pieces = pipe.stream(prompt)  # before anything is printed: what is wrong with the options shows here
    out.write(prompt)
    out.flush()
    for piece in pieces:
        out.write(piece)
        out.flush()
    out.write("\n")
    out.flush()


def generate(pipe, model, prompt: str, choices: int) -> tuple[list[dict], list[list[dict]]]:
    """The texts with their log probabilities, the best first, and for each what it was chosen among.

    Log probabilities are those of the distributions that tokens were chosen from, after temperature, top-k and the like.
    """
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
        new = task.ending(ids, options).take(sequence[len(ids) :])
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


def write_texts(texts: Sequence[Mapping], choices: Sequence, out: TextIO) -> None:
    """Every text whole, and below it the table of its choices where there is one."""
    from rich.console import Console

    for number, text in enumerate(texts):
        if len(texts) > 1:
            print(f"--- text {number + 1} of {len(texts)} ---", file=out)
        print(text["generated_text"], file=out, flush=True)
        if choices:
            console = Console(file=out)
            console.print()
            console.print(choices_table(choices[number]))
            score = f", beam score {text['sequences_score']:.4f}" if "sequences_score" in text else ""
            console.print(
                f"log probability {text['logprob']:.4f}, perplexity {text['perplexity']:.4f} per token{score}",
                highlight=False,
            )


def check_plot(path: str, options: Mapping[str, Any]) -> None:
    """Raises InputError for a picture that could not be saved, before anything is loaded."""
    from duonlp.generation import plots

    GenerationConfig(**{name: options[name] for name in ("temperature", "top_k", "top_p") if name in options})
    plots.check_arguments(np.zeros(1), Path(path), [1.0], None, None)


def plot_first_token(pipe, model, settings: Settings) -> None:
    """Draw what the model says comes after the prompt, with the cuts of top_k and top_p that were asked for."""
    from duonlp.generation.plots import plot_next_token

    ((example,),) = pipe.task.encode([settings.prompt], pipe.options)
    ids = example.inputs["input_ids"][None]
    bare = GenerationConfig(max_new_tokens=1, output_logits=True)  # no processor, whatever the model's own has
    logits = model.generate(ids, np.ones_like(ids), bare)["logits"][0, 0]
    given = pipe.options.given
    temperatures = {"temperatures": sorted({1.0, float(given["temperature"])})} if "temperature" in given else {}
    title = " ".join(settings.prompt.split())
    title = title if len(title) <= 60 else "..." + title[-57:]
    plot_next_token(
        logits, settings.plot, tokenizer=pipe.tokenizer, title=f"after {title!r}",
        top_k=given.get("top_k") or None, top_p=given.get("top_p"), **temperatures,
    )  # fmt: skip
