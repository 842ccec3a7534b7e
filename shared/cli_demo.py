"""`duonlp demo`, the main job: train a tokenizer and a small code model on Python's standard library with jaxnlp, save
them in Hugging Face layout, load that in tfnlp and in jaxnlp, and show that the two say the same.
"""

import json
import math
import os
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeRemainingColumn
from rich.table import Table

from shared import frameworks
from shared.data.corpus import read_texts, split_by_path, standard_library_files, standard_library_folder, text_files
from shared.data.packing import pack_blocks, shuffled_batches
from shared.errors import InputError, MissingExtraError
from shared.tokenizers.train import train_byte_level_bpe

BARS = " ▁▂▃▄▅▆▇█"


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
    """Runs the whole demo, and writes the model, the loss curve and the figures below ``settings.output``.

    Returns:
        The figures, as in ``demo.json``; "agree" is whether the frameworks gave the same logits and texts.

    Raises:
        InputError: the corpus is not there or too small, or the output is a file.
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

    tokenizer, training, held_out = prepare(settings, console)
    model, history, trained = pretrain(settings, tokenizer, training, console)
    perplexity = evaluate(settings, model, held_out)
    folder = settings.output / "model"
    model.save_pretrained(folder, tokenizer=tokenizer)
    plot(history, settings.output / "loss.png", math.log(perplexity))

    console.rule("the same checkpoint in both frameworks")
    from shared.parity import compare

    report = compare(
        folder, frameworks=("tf", "jax"), inputs=list(settings.prompts), max_new_tokens=settings.new_tokens
    )
    speeds, completions = generate(settings, folder)
    same_text = completions["tf"] == completions["jax"]
    figures = {
        "model": str(folder),
        "parameters": model.num_parameters(),
        "bytes": sum(file.stat().st_size for file in folder.glob("*.safetensors")),
        **trained,
        "held_out_perplexity": perplexity,
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
    if "jax" in sys.modules or "host_platform_device_count" in os.environ.get("XLA_FLAGS", ""):
        return
    devices = math.gcd(batch_size, 2 ** int(math.log2(os.cpu_count() or 1)))
    flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count={devices}"
    os.environ["XLA_FLAGS"] = flags.strip()


def prepare(settings: Settings, console: Console):
    """The corpus, split; the tokenizer, trained on its training part; and both parts as blocks of ids."""
    start = time.perf_counter()
    root = Path(settings.corpus or standard_library_folder())
    files = text_files(root) if settings.corpus else standard_library_files()
    training_files, held_out_files = split_by_path(files, root)
    training_texts, held_out_texts = list(read_texts(training_files)), list(read_texts(held_out_files))
    if not training_texts or not held_out_texts:
        raise InputError(f"{len(files)} files in {str(root)!r} are too few to train on some and hold out others")
    with console.status("training a tokenizer"):
        tokenizer = train_byte_level_bpe(training_texts, settings.vocab_size, max_length=settings.block_length)

    def blocks(texts):
        ids = (encoding.ids for encoding in tokenizer.backend_tokenizer.encode_batch(texts))
        return pack_blocks(ids, settings.block_length, tokenizer.eos_token_id)

    with console.status("encoding the corpus"):
        training, held_out = blocks(training_texts), blocks(held_out_texts)
    console.print(
        f"corpus: {root}, {len(training_texts)} files to train on and {len(held_out_texts)} held out; "
        f"byte-level BPE of {len(tokenizer)} tokens trained, {training.size / 1e6:.1f}M tokens encoded "
        f"in {time.perf_counter() - start:.1f} s",
        highlight=False,
        soft_wrap=True,
    )
    return tokenizer, training, held_out


def pretrain(settings: Settings, tokenizer, blocks: np.ndarray, console: Console):
    """A model of GPT-2's shape trained from scratch; returns it, its losses [(tokens, loss)], and what it took."""
    from jaxnlp import pretraining

    model = frameworks.package("jax").AutoModelForCausalLM.from_config(
        {
            "model_type": "gpt2",
            "vocab_size": len(tokenizer),
            "n_positions": settings.block_length,
            "n_embd": settings.hidden_size,
            "n_layer": settings.num_layers,
            "n_head": settings.num_heads,
            "resid_pdrop": 0.0,
            "embd_pdrop": 0.0,
            "attn_pdrop": 0.0,
            "bos_token_id": tokenizer.eos_token_id,
            "eos_token_id": tokenizer.eos_token_id,
        },
        seed=settings.seed,
    )
    config = pretraining.PretrainingConfig(
        steps=settings.steps, seconds=settings.seconds, learning_rate=settings.learning_rate
    )
    mesh = pretraining.data_mesh()
    console.print(
        f"model: GPT-2's shape, {settings.num_layers} layers of {settings.hidden_size}, "
        f"{model.num_parameters() / 1e6:.1f}M parameters, from random values, on {mesh.size} "
        f"{mesh.devices.flat[0].platform} device{'s' * (mesh.size > 1)} (jaxnlp, data-parallel)",
        highlight=False,
        soft_wrap=True,
    )
    batches = shuffled_batches(blocks, settings.batch_size, settings.seed)
    history: list[tuple[int, float]] = []
    columns = (
        SpinnerColumn(),
        TextColumn("pretraining"),
        BarColumn(bar_width=20),
        TextColumn("{task.fields[note]}"),
        TimeRemainingColumn(),
    )
    tokens, last, spoken = 0, None, 0.0
    with Progress(*columns, console=console) as bar:
        task = bar.add_task("", total=1.0, note="compiling")
        for step in pretraining.pretrain(model, batches, config, mesh):
            tokens += step.tokens
            history.append((tokens, step.loss))
            speed = (tokens - step.tokens) / step.seconds if step.number > 1 else 0.0
            recent = float(np.mean([loss for _, loss in history[-20:]]))
            note = f"{sparkline([loss for _, loss in history])} loss {recent:.2f}  {speed:,.0f} tokens/s"
            bar.update(task, completed=step.progress, note=note)
            if not console.is_terminal and step.progress >= spoken + 0.1:
                spoken = step.progress
                console.print(f"  {step.progress:4.0%}  {note}", highlight=False)
            last = step
    trained = {
        "steps": last.number,
        "tokens": tokens,
        "training_loss": recent,
        "training_seconds": last.seconds,
        "training_tokens_per_second": speed,
        "devices": mesh.size,
    }
    return model, history, trained


def evaluate(settings: Settings, model, held_out: np.ndarray) -> float:
    """Perplexity a token on held-out files, of which at most 256 blocks are read."""
    from jaxnlp import pretraining

    batch = settings.batch_size
    return math.exp(pretraining.held_out_loss(model, held_out[: max(batch, 256 // batch * batch)], batch))


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


def plot(history: list[tuple[int, float]], file: Path, held_out_loss: float) -> None:
    """The loss curve as a picture."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    tokens, losses = np.array(history, dtype=float).T
    figure = Figure(figsize=(7, 4), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    axes.plot(tokens / 1e6, losses, color="#b8c4d6", linewidth=0.8, label="each step")
    width = max(1, len(losses) // 40)
    smooth = np.convolve(losses, np.ones(width) / width, mode="valid")
    axes.plot(tokens[width - 1 :] / 1e6, smooth, color="#1f4e8c", linewidth=1.8, label=f"mean of {width} steps")
    axes.axhline(held_out_loss, color="#c1440e", linestyle="--", linewidth=1.2, label=f"held out: {held_out_loss:.2f}")
    axes.set(
        xlabel="tokens seen (millions)", ylabel="loss (nats a token)", title="Pretraining on Python's standard library"
    )
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False)
    figure.savefig(file)


def sparkline(values: list[float], width: int = 24) -> str:
    """A curve in one line of text, high to low."""
    pieces = [float(piece.mean()) for piece in np.array_split(np.asarray(values, float), min(width, len(values)))]
    low, high = min(pieces), max(pieces)
    span = (high - low) or 1.0
    return "".join(BARS[1 + round((value - low) / span * (len(BARS) - 2))] for value in pieces)


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
