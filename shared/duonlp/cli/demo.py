"""`duonlp demo`, the main job in small: Python's standard library cleaned, a tokenizer and blocks made of it, a code model
pretrained on them with jaxnlp, exported in Hugging Face layout, loaded in tfnlp and in jaxnlp, which say the same.
"""

import json
import math
import os
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from duonlp.errors import InputError, MissingExtraError
from duonlp.util import frameworks
from duonlp.util.xla_flags import HOST_DEVICES, add_xla_flags


@dataclass(frozen=True)
class Settings:
    """Sizes that fit five minutes on two cores. corpus: a folder of Python files; None for the standard library."""

    output: Path = Path("demo")
    corpus: str | None = None
    steps: int = 2100
    seconds: float | None = 205.0
    # A prompt ends inside a line: a line's indentation is one token with the end of the line before it.
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
    num_heads: int = 4
    learning_rate: float = 3e-3
    new_tokens: int = 48
    seed: int = 0


def run(settings: Settings) -> dict[str, Any]:
    """Runs the whole demo, and writes data, run, model, the loss curve and the figures below ``settings.output``.

    Called again with the same settings it does not do again what is done.

    Returns:
        The figures, as in ``demo.json``; "agree" is whether the frameworks gave the same logits and texts.

    Raises:
        InputError: the corpus is not there or too small, or the output is a file, or holds another demo.
        MissingExtraError: matplotlib is not installed.
    """
    check_plotting()
    frameworks.keep_heap()
    use_host_devices(settings.batch_size)
    if settings.output.exists() and not settings.output.is_dir():
        raise InputError(f"--output {str(settings.output)!r} is a file; give a folder")
    settings.output.mkdir(parents=True, exist_ok=True)
    console = Console(stderr=True) if sys.stdout is sys.stderr else Console()
    begin = time.perf_counter()

    described = run_config(settings)
    prepared = prepare(described, settings.output / "data", console)
    folder = settings.output / "model"
    trained = pretrain(described, prepared, settings.output / "run", folder, console)
    plot(settings.output)

    console.rule("the same checkpoint in both frameworks")
    from duonlp.parity import compare

    report = compare(
        folder, frameworks=("tf", "jax"), inputs=list(settings.prompts), max_new_tokens=settings.new_tokens
    )
    speeds, completions = generate(settings, folder)
    same_text = completions["tf"] == completions["jax"]
    figures = {
        "model": str(folder),
        "bytes": sum(file.stat().st_size for file in folder.glob("*.safetensors")),
        **trained,
        "largest_logit_difference": max(row.difference for row in report.rows),
        "relative_logit_difference": max(row.relative for row in report.rows),
        "generated_tokens_per_second": speeds,
        "prompts": list(settings.prompts),
        "completions": completions,
        "same_text": same_text,
        "agree": report.ok and same_text,
        "loss_curve": str(settings.output / "loss.png"),
        "seconds": time.perf_counter() - begin,
    }
    (settings.output / "demo.json").write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")
    show(figures, console)
    return figures


def check_plotting() -> None:
    """Raises MissingExtraError at the start rather than after the training."""
    import importlib.util

    if not importlib.util.find_spec("matplotlib"):
        raise MissingExtraError(
            'the demo plots its loss with matplotlib, which is missing; pip install "duonlp[bench]"'
        )


def use_host_devices(batch_size: int) -> None:
    """Makes JAX show this host's cores as devices, which has to be said before JAX is imported."""
    if "jax" in sys.modules:
        return
    devices = math.gcd(batch_size, 2 ** int(math.log2(os.cpu_count() or 1)))
    add_xla_flags({HOST_DEVICES: devices})


def run_config(settings: Settings):
    """The demo as a run like any other (duonlp.runs.pretraining)."""
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


def prepare(run, folder: Path, console: Console):
    """The corpus cleaned and split, the tokenizer, and both parts as blocks (duonlp.runs.preparation)."""
    from duonlp.runs.preparation import prepare as prepare_run

    start = time.perf_counter()
    with console.status("") as status:
        prepared = prepare_run(run, folder, on_progress=status.update)
    kept, tokens = prepared.corpus["kept"]["documents"], prepared.training.manifest.tokens
    dropped = ", ".join(
        f"{reason} {found['documents']}" for reason, found in list(prepared.corpus["dropped"].items())[:3]
    )
    console.print(
        f"corpus: {run.corpus}, {kept} of {prepared.corpus['documents']} files kept ({dropped}, ...), "
        f"{prepared.held_out.manifest.documents} of them held out; byte-level BPE of {len(prepared.tokenizer)} tokens "
        f"trained, {tokens / 1e6:.1f}M tokens in blocks, in {time.perf_counter() - start:.1f} s",
        highlight=False,
        soft_wrap=True,
    )
    return prepared


def pretrain(run, prepared, folder: Path, output: Path, console: Console) -> dict[str, Any]:
    """A model of GPT-2's shape trained from scratch and exported; returns what it took and what came of it."""
    import numpy as np

    from duonlp.architectures import config_from_hf
    from duonlp.data.objectives.language_modelling import head_of
    from duonlp.parameters import count_parameters

    frameworks.package("jax")
    from jaxnlp import training

    mesh = training.make_mesh()
    config = run.model_config(prepared.tokenizer)
    count = count_parameters(config_from_hf(config), head_of(run.objective))
    console.print(
        f"model: GPT-2's shape, {config['n_layer']} layers of {config['n_embd']}, {count / 1e6:.1f}M parameters, from "
        f"random values, on {mesh.size} {mesh.devices.flat[0].platform} device{'s' * (mesh.size > 1)} "
        "(jaxnlp, data-parallel)",
        highlight=False,
        soft_wrap=True,
    )
    result = training.pretrain_run(run, prepared, folder, log={"console": console, "console_seconds": 20.0})
    from duonlp.training.log.metrics_file import EVALUATION, STEP, read_metrics

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


def generate(settings: Settings, folder: Path) -> tuple[dict[str, float], dict[str, list[str]]]:
    """Each framework's greedy completions of the prompts, and its speed in new tokens a second once compiled."""
    speeds, completions = {}, {}
    for framework in ("tf", "jax"):
        pipe = frameworks.package(framework).pipeline("text-generation", folder, batch_size=1)
        options = {"max_new_tokens": settings.new_tokens}
        tokens, seconds, completions[framework] = 0, 0.0, []
        for prompt in settings.prompts:
            pipe(prompt, **options)  # compiles
            start = time.perf_counter()
            text = pipe(prompt, **options)[0]["generated_text"]
            seconds += time.perf_counter() - start
            tokens += len(pipe.tokenizer(text)["input_ids"]) - len(pipe.tokenizer(prompt)["input_ids"])
            completions[framework].append(text)
        speeds[framework] = tokens / seconds
    return speeds, completions


def plot(folder: Path) -> None:
    """The loss curve as a picture."""
    from duonlp.training.log.plots import plot_loss

    plot_loss(folder / "run", folder / "loss.png", title="Pretraining on Python's standard library")


def show(figures: dict[str, Any], console: Console) -> None:
    """The completions and the figures on a terminal."""
    for number, prompt in enumerate(figures["prompts"]):
        texts = {name: figures["completions"][name][number] for name in figures["completions"]}
        for name, text in texts.items() if len(set(texts.values())) > 1 else [("both", texts["jax"])]:
            console.print(f"\n[bold]{name}[/] complete{'s' * (name != 'both')} the prompt [dim](prompt in bold)[/]:")
            console.print(
                f"[bold]{_escape(prompt)}[/]{_escape(text.removeprefix(prompt))}", highlight=False, soft_wrap=True
            )
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
        f"perplexity on held-out files {figures['held_out_perplexity']:.1f}\n"
        f"largest difference of logits, tfnlp - jaxnlp: {figures['largest_logit_difference']:.1e} "
        f"(relative {figures['relative_logit_difference']:.1e}); "
        f"texts are {'the same' if figures['same_text'] else 'NOT the same'}\n"
        f"model: {figures['model']}   loss curve: {figures['loss_curve']}   all of it took {figures['seconds']:.0f} s",
        highlight=False,
        soft_wrap=True,
        markup=False,
    )


def _escape(text: str) -> str:
    from rich.markup import escape

    return escape(text)
