"""``duonlp demo``: pretraining from end to end in a few minutes.

Python's standard library is cleaned, tokenized and packed into blocks; a code model is pretrained on them with jaxnlp,
exported in Hugging Face layout, and loaded in tfnlp and jaxnlp, whose outputs are compared.
"""

import contextlib
import math
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from duonlp.cli.common import Debug, Json, cli_option, print_json
from duonlp.errors import InputError, MissingExtraError
from duonlp.util import frameworks
from duonlp.util.console import plain_console
from duonlp.util.files import locked_folder, write_text
from duonlp.util.json_text import to_json
from duonlp.util.tokenization import tokenize

if TYPE_CHECKING:
    from rich.console import Console

    from duonlp.runs.preparation import Prepared
    from duonlp.runs.pretraining import RunConfig


def demo(
    output: Annotated[Path, cli_option(help="Folder for the model, loss curve and figures (default demo).")] = Path(
        "demo"
    ),
    steps: Annotated[int, cli_option(help="Optimizer steps (default 4200).")] = 0,
    seconds: Annotated[float, cli_option(help="Stop training after this many seconds (default 205).")] = 0.0,
    corpus: Annotated[str, cli_option(help="Folder of Python files (default: the standard library).")] = "",
    prompt: Annotated[
        list[str] | None, cli_option(help="Code to complete; repeatable (default: two examples).")
    ] = None,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Pretrain a small code model in jaxnlp and run it in both frameworks; exit with status 1 if they differ."""
    defaults = Settings()
    for name, value in (("steps", steps), ("seconds", seconds)):
        if value < 0:
            raise InputError(f"--{name} is {value}; it must be positive")
    settings = Settings(
        output=output,
        corpus=corpus or None,
        steps=steps or defaults.steps,
        seconds=seconds or defaults.seconds,
        prompts=tuple(prompt) if prompt else defaults.prompts,
    )
    frameworks.calm_frameworks()
    for name in frameworks.PACKAGES:
        frameworks.require(name)
    with frameworks.quiet_stdout() if as_json else contextlib.nullcontext():
        report = run_demo(settings)
    if as_json:
        print_json(report)
    if not report["agree"]:
        raise typer.Exit(1)


@dataclass(frozen=True)
class Settings:
    """Settings of the demo; the defaults take under five minutes on two cores.

    Attributes:
        output: Folder for all results.
        corpus: Folder of Python files; None for the standard library.
        steps: Optimizer steps.
        seconds: Time limit of the training; None for no limit.
        prompts: Code to complete. A prompt ends within a line, because the tokenizer merges a line's indentation with
            the end of the line before it.
        new_tokens: Tokens generated per prompt.
        temperature: Temperature of the sampled completions.
        top_p: Probability of the tokens they are sampled from.
        repetition_penalty: Penalty of tokens that the text already has.
        sampling_seed: Seed of the completions; it gives the same text in both frameworks.
    """

    output: Path = Path("demo")
    corpus: str | None = None
    steps: int = 4200
    seconds: float | None = 205.0
    prompts: tuple[str, ...] = (
        "def read_lines(path):\n    with open(path) as file:\n        for line in file:",
        "class Stack:\n    def __init__(self, items):\n        self.items = items\n\n"
        "    def push(self, item):\n        self.items.append(item)\n\n    def pop(self):",
    )
    vocab_size: int = 2048
    block_length: int = 128
    batch_size: int = 8
    hidden_size: int = 128
    num_layers: int = 4
    num_heads: int = 2
    learning_rate: float = 2e-3
    new_tokens: int = 64
    temperature: float = 0.5
    top_p: float = 0.9
    repetition_penalty: float = 1.1
    sampling_seed: int = 0
    seed: int = 0


def run_demo(settings: Settings) -> dict[str, Any]:
    """Run the demo and write data, run, model, loss curve and figures below ``settings.output``.

    Stages that are complete for the same settings are not repeated.

    Returns:
        The figures in ``demo.json``; "agree" is whether the frameworks gave the same logits and texts.

    Raises:
        InputError: The corpus does not exist or is too small, or the output is a file, holds a different demo or is in use by
            another process.
        StorageError: A file cannot be written.
        MissingExtraError: matplotlib is not installed.
    """
    check_plotting()
    frameworks.keep_heap()
    if settings.output.exists() and not settings.output.is_dir():
        raise InputError(f"--output {str(settings.output)!r} is a file; give a folder")
    with locked_folder(settings.output, "demo"):
        return _run_demo(settings)


def _run_demo(settings: Settings) -> dict[str, Any]:
    """Run the demo in its locked folder."""
    from duonlp.parity import compare

    console = plain_console(stderr=sys.stdout is sys.stderr)
    start = time.perf_counter()

    run = run_config(settings)
    prepared = prepare(run, settings.output / "data", console)
    folder = settings.output / "model"
    training = pretrain(run, prepared, settings.output / "run", folder, console)
    plot(settings.output)

    console.rule("the checkpoint in both frameworks")
    report = compare(
        folder, frameworks=("tf", "jax"), inputs=list(settings.prompts), max_new_tokens=settings.new_tokens
    )
    speeds, completions = complete_prompts(settings, folder)
    same_text = completions["tf"] == completions["jax"]
    figures = {
        "model": str(folder),
        "bytes": sum(file.stat().st_size for file in folder.glob("*.safetensors")),
        **training,
        "largest_logit_difference": max(row.difference for row in report.rows),
        "relative_logit_difference": max(row.relative for row in report.rows),
        "generated_tokens_per_second": speeds,
        "prompts": list(settings.prompts),
        "completions": completions,
        "same_text": same_text,
        "agree": report.ok and same_text,
        "loss_curve": str(settings.output / "loss.png"),
        "seconds": time.perf_counter() - start,
    }
    write_text(settings.output / "demo.json", to_json(figures, indent=2) + "\n")
    print_figures(figures, console)
    return figures


def check_plotting() -> None:
    """Raise MissingExtraError if matplotlib is missing, at the start rather than after the training."""
    import importlib.util

    if not importlib.util.find_spec("matplotlib"):
        raise MissingExtraError(
            'the demo plots its loss with matplotlib, which is not installed; pip install "duonlp[bench]"'
        )


def run_config(settings: Settings) -> "RunConfig":
    """Return the demo as an ordinary pretraining run (``duonlp.runs.pretraining``)."""
    from duonlp.runs.pretraining import RunConfig

    return RunConfig.of(
        {
            "corpus": settings.corpus or "standard-library",
            "held_out": 0.03,
            "tokenizer": {"kind": "bpe", "vocab_size": settings.vocab_size},
            "block_length": settings.block_length,
            "model": {
                "model_type": "gpt2", "n_embd": settings.hidden_size, "n_layer": settings.num_layers,
                "n_head": settings.num_heads, "resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0,
            },
            "model_seed": settings.seed,
            "training": {
                "steps": settings.steps, "seconds": settings.seconds, "batch_size": settings.batch_size,
                "learning_rate": settings.learning_rate, "seed": settings.seed, "log_every": 10,
                "evaluate_every": settings.steps, "save_every": 500, "keep_last": 1,
            },
        }
    )  # fmt: skip


def prepare(run: "RunConfig", folder: Path, console: "Console") -> "Prepared":
    """Clean and split the corpus, train the tokenizer, and pack both parts into blocks."""
    from duonlp.runs.preparation import prepare as prepare_run

    start = time.perf_counter()
    from rich.text import Text

    with console.status("") as status:
        prepared = prepare_run(run, folder, on_progress=lambda text: status.update(Text(text)))
    kept, tokens = prepared.corpus["kept"]["documents"], prepared.training.manifest.tokens
    dropped = ", ".join(
        f"{reason} {counts['documents']}" for reason, counts in list(prepared.corpus["dropped"].items())[:3]
    )
    console.print(
        f"corpus: {run.corpus}, kept {kept} of {prepared.corpus['documents']} files (dropped: {dropped}, ...), held out "
        f"{prepared.held_out.manifest.documents}; tokenizer: byte-level BPE with {len(prepared.tokenizer)} tokens; "
        f"{tokens / 1e6:.1f}M training tokens in blocks; {time.perf_counter() - start:.1f} s",
        soft_wrap=True,
    )
    return prepared


def pretrain(run: "RunConfig", prepared: "Prepared", folder: Path, output: Path, console: "Console") -> dict[str, Any]:
    """Pretrain a GPT-2-style model from scratch, export it, and return the figures of the training."""
    import numpy as np

    from duonlp.architectures import config_from_hf
    from duonlp.data.objectives.language_modelling import head_of
    from duonlp.parameters import count_parameters
    from duonlp.training.log.metrics_file import EVALUATION, STEP, read_metrics

    frameworks.package("jax")
    from jaxnlp import training

    mesh = training.make_mesh()
    config = run.model_config(prepared.tokenizer)
    count = count_parameters(config_from_hf(config), head_of(run.objective))
    console.print(
        f"model: GPT-2 with {config['n_layer']} layers of width {config['n_embd']}, {count / 1e6:.1f}M parameters, randomly "
        f"initialized; training in jaxnlp on {mesh.size} {mesh.devices.flat[0].platform} device{'s' * (mesh.size > 1)}, "
        "data-parallel",
        soft_wrap=True,
    )
    result = training.pretrain_run(run, prepared, folder, log={"console": console, "console_seconds": 20.0})

    records = read_metrics(folder)
    steps = [record for record in records if record["kind"] == STEP]
    held_out = [record["loss"] for record in records if record["kind"] == EVALUATION]
    training.export(folder, output, tokenizer=prepared.tokenizer)
    return {
        "parameters": count,
        "steps": result.steps,
        "tokens": result.tokens,
        "training_loss": float(np.mean([record["loss"] for record in steps[-5:]])),
        "training_seconds": result.seconds,
        "training_tokens_per_second": steps[-1].get("tokens_per_second", 0.0),
        "devices": mesh.size,
        "held_out_perplexity": math.exp(held_out[-1]),
    }


def complete_prompts(settings: Settings, folder: Path) -> tuple[dict[str, float], dict[str, list[str]]]:
    """Return each framework's speed in new tokens per second, compilation excluded, and its sampled completions."""
    speeds, completions = {}, {}
    for framework in ("tf", "jax"):
        pipe = frameworks.package(framework).pipeline("text-generation", folder, batch_size=1)
        options = {
            "max_new_tokens": settings.new_tokens, "do_sample": True, "temperature": settings.temperature,
            "top_p": settings.top_p, "repetition_penalty": settings.repetition_penalty, "seed": settings.sampling_seed,
        }  # fmt: skip
        tokens, seconds, completions[framework] = 0, 0.0, []
        for prompt in settings.prompts:
            pipe(prompt, **options)  # compiles
            start = time.perf_counter()
            text = pipe(prompt, **options)[0]["generated_text"]
            seconds += time.perf_counter() - start
            sizes = [len(ids) for ids in tokenize(pipe.tokenizer, [prompt, text])["input_ids"]]
            tokens += sizes[1] - sizes[0]
            completions[framework].append(text)
        speeds[framework] = tokens / seconds
    return speeds, completions


def plot(folder: Path) -> None:
    """Plot the loss curve."""
    from duonlp.training.log.plots import plot_loss

    plot_loss(folder / "run", folder / "loss.png", title="Pretraining on Python's standard library")


def print_figures(figures: dict[str, Any], console: "Console") -> None:
    """Print the completions, up to their last whole line, and the figures."""
    from rich.table import Table
    from rich.text import Text

    for number, prompt in enumerate(figures["prompts"]):
        texts = {name: figures["completions"][name][number] for name in figures["completions"]}
        for name, text in texts.items() if len(set(texts.values())) > 1 else [("both", texts["jax"])]:
            verb = f" complete{'s' * (name != 'both')} the prompt "
            console.print(Text.assemble("\n", (name, "bold"), verb, ("(in bold)", "dim"), ":"))
            console.print(Text.assemble((prompt, "bold"), whole_lines(text.removeprefix(prompt))), soft_wrap=True)
    speeds = figures["generated_tokens_per_second"]
    table = Table("", "jaxnlp", "tfnlp", box=None, pad_edge=False, header_style="bold")
    for column in table.columns[1:]:
        column.justify = "right"
    table.add_row("pretraining, tokens/s", f"{figures['training_tokens_per_second']:,.0f}", "")
    table.add_row("generation, tokens/s", f"{speeds['jax']:,.0f}", f"{speeds['tf']:,.0f}")
    console.print()
    console.print(table)
    console.print(
        f"{figures['parameters'] / 1e6:.1f}M parameters, {figures['bytes'] / 1e6:.1f} MB; trained on "
        f"{figures['tokens'] / 1e6:.2f}M tokens in {figures['training_seconds']:.0f} s; "
        f"held-out perplexity {figures['held_out_perplexity']:.1f}\n"
        f"largest logit difference between tfnlp and jaxnlp: {figures['largest_logit_difference']:.1e} "
        f"(relative {figures['relative_logit_difference']:.1e}); "
        f"texts are {'identical' if figures['same_text'] else 'DIFFERENT'}\n"
        f"model: {figures['model']}   loss curve: {figures['loss_curve']}   total time: {figures['seconds']:.0f} s",
        soft_wrap=True,
    )


def whole_lines(text: str) -> str:
    """Return a text without its last line, which the limit of new tokens cut; a single line is returned as it is."""
    lines = text.rstrip().rpartition("\n")
    return (lines[0] or lines[2]).rstrip()
