"""The work that the attack of two_processes.py starts twice in one folder; none of it needs a framework."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np

EXCLUSIVE, SHARED = ("prepare", "blocks", "split", "log", "search"), ("rows", "logits", "text", "records", "copies")
"""Work that one process at a time may do in a folder, and work that any number may."""


class Ordered:
    """Batches of texts without contents."""

    def order(self, number: int) -> np.ndarray:
        return np.arange(64).reshape(8, 8)

    def epoch(self, number: int) -> Any:
        return iter(())


def prepare(folder: Path) -> None:
    """Prepare a pretraining run."""
    from duonlp.runs.preparation import prepare as prepare_run
    from duonlp.runs.pretraining import RunConfig

    source = folder.parent / "source"
    source.mkdir(exist_ok=True)
    for i in range(30):
        file = source / f"m{i}.py"
        if not file.exists():
            file.write_text(f"def f{i}(x):\n    '''Adds {i * 7}.'''\n    return x + {i}\n")
    run = RunConfig.of(
        {
            "corpus": str(source), "held_out": 0.3, "cleaning": {"filters": None, "near_duplicates": None},
            "tokenizer": {"kind": "bpe", "vocab_size": 300}, "block_length": 16,
            "model": {"model_type": "gpt2", "n_embd": 16, "n_layer": 1, "n_head": 2}, "training": {"steps": 4, "batch_size": 2},
        }
    )  # fmt: skip
    prepare_run(run, folder)


def blocks(folder: Path) -> None:
    """Write blocks."""
    from tokenizers import Tokenizer, models, pre_tokenizers

    from duonlp.data.blocks.writer import write_blocks

    backend = Tokenizer(models.WordLevel({f"w{i}": i for i in range(99)}, unk_token="w0"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    texts = (" ".join(f"w{i}" for i in np.random.default_rng(seed).integers(0, 99, 99)) for seed in range(40))
    tokenizer: Any = SimpleNamespace(backend_tokenizer=backend, eos_token_id=0)
    write_blocks(texts, tokenizer, folder, block_length=16, shard_blocks=9)


def split(folder: Path) -> None:
    """Write a training and a held-out file."""
    from duonlp.data.cleaning.splits import write_split
    from duonlp.data.reading.documents import Document

    write_split((Document("text\n" * i, f"{i}.py") for i in range(300)), folder, held_out=0.5)


def log(folder: Path) -> None:
    """Log 50 steps, as a run without a checkpoint does that starts over."""
    from duonlp.training.log.metrics_log import MetricsLog

    with MetricsLog(folder, total_steps=50, console=False, resumed_from=0) as metrics:
        for step in range(1, 51):
            metrics.step({"step": step, "loss": 1 / step, "tokens": step})


def search(folder: Path) -> None:
    """Search for a setting."""
    from duonlp.tuning.search import tune

    tune(
        lambda parameters, _: {"accuracy": parameters["x"]}, {"x": {"low": 0.0, "high": 1.0}}, folder, trials=3, console=False,
    )  # fmt: skip


def rows(folder: Path) -> None:
    """Build a cache of token ids."""
    from duonlp.data.rows.length_batches import load_or_build_rows
    from duonlp.data.rows.token_rows import TokenRows

    made = [TokenRows.of(np.random.default_rng(i).integers(0, 99, (50, 40)).tolist()) for i in range(2)]
    loaded = load_or_build_rows(folder / "cache", ("a", "b"), 50, lambda: made)
    assert all((ours.values == theirs.values).all() for ours, theirs in zip(loaded, made, strict=True)), "mixed"


def logits(folder: Path) -> None:
    """Cache a teacher's logits."""
    from duonlp.distillation.teacher_logits import load_or_compute_logits

    model = SimpleNamespace(config=None, head="h", dtype="float32")
    expected = np.random.default_rng(0).random((64, 300)).astype(np.float32)
    cached = load_or_compute_logits(Ordered(), folder, model, {}, lambda *_: expected)
    assert (cached.logits == expected).all(), "mixed"


def text(folder: Path) -> None:
    """Replace a file ten times."""
    from duonlp.util.files import write_text

    folder.mkdir(exist_ok=True)
    for _ in range(10):
        write_text(folder / "a.json", json.dumps(["x" * 50_000]))
        json.loads((folder / "a.json").read_text())


def records(folder: Path) -> None:
    """Add ten numbers to a file."""
    from duonlp.util.files import updating, write_text

    folder.mkdir(exist_ok=True)
    for _ in range(10):
        with updating(folder / "n.json"):
            file = folder / "n.json"
            write_text(file, str(int(file.read_text() if file.exists() else 0) + 1))


def copies(folder: Path) -> None:
    """Keep augmented copies of texts in a folder."""
    from duonlp.augmentation import RandomEdits
    from duonlp.augmentation.cache import CachedAugmenter

    texts = [f"some words of text {'x' * i} that may change" for i in range(60)]
    cached = CachedAugmenter(RandomEdits(), folder / "cache", chunk=7)
    assert cached.augment(texts, 2) == RandomEdits().augment(texts, 2), "mixed"


def run_duonlp(kind: str, folder: Path) -> tuple[dict[str, np.ndarray], bool]:
    """Do a work in a folder; return no parameters, and that it was not asked to stop."""
    globals()[kind](folder)
    return {}, False
