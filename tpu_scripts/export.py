"""Writes the model of a run's checkpoint in Hugging Face layout: unstacked, in sharded safetensors, with its tokenizer.

    python tpu_scripts/export.py run --data data --output model [--step 5000]

Needs no accelerator, and no more memory than the model.
"""

import os
import sys
from pathlib import Path
from typing import Annotated

if __package__ in (None, ""):
    root = Path(__file__).resolve().parent.parent
    sys.path[:0] = [str(root / "shared"), str(root)]  # a checkout that nobody installed
os.environ.setdefault("JAX_PLATFORMS", "cpu")

import typer

from tpu_scripts._program import run

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.command()
def main(
    folder: Annotated[Path, typer.Argument(help="The run's folder.")],
    output: Annotated[Path, typer.Option(help="The folder to write.")] = Path("model"),
    data: Annotated[Path | None, typer.Option(help="What prepare.py made, for the tokenizer.")] = None,
    step: Annotated[int | None, typer.Option(help="Which checkpoint; the last by default.")] = None,
    dtype: Annotated[str, typer.Option(help="float32, bfloat16 or float16.")] = "float32",
    max_shard_size: Annotated[str, typer.Option(help="Larger models become several files.")] = "5GB",
) -> None:
    """Writes the model of a run's checkpoint in Hugging Face layout, with its tokenizer."""
    from duonlp.runs import load_tokenizer
    from jaxnlp.training import export

    tokenizer = None if data is None else load_tokenizer(data)
    print(export(folder, output, step=step, tokenizer=tokenizer, dtype=dtype, max_shard_size=max_shard_size))


if __name__ == "__main__":
    sys.exit(run(app, "export"))
