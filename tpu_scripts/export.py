"""Export a run's checkpoint in Hugging Face layout: unstacked, in sharded safetensors, with its tokenizer.

    python tpu_scripts/export.py run --data data --output model [--step 5000]

Needs no accelerator, and no more memory than the model.
"""

import os
import sys
from pathlib import Path
from typing import Annotated

if __package__ in (None, ""):
    root = Path(__file__).resolve().parent.parent
    sys.path[:0] = [str(root / "shared"), str(root)]  # run from a checkout that is not installed
os.environ.setdefault("JAX_PLATFORMS", "cpu")

import typer

from tpu_scripts._program import run

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.command()
def main(
    folder: Annotated[Path, typer.Argument(help="Folder of the run.")],
    output: Annotated[Path, typer.Option(help="Folder to write.")] = Path("model"),
    data: Annotated[Path | None, typer.Option(help="Folder made by prepare.py, for the tokenizer.")] = None,
    step: Annotated[int | None, typer.Option(help="Step of the checkpoint (default: the last one).")] = None,
    dtype: Annotated[str, typer.Option(help="Stored dtype: float32, bfloat16 or float16.")] = "float32",
    max_shard_size: Annotated[str, typer.Option(help="Maximum size of a weight file.")] = "5GB",
) -> None:
    """Export a run's checkpoint in Hugging Face layout."""
    from duonlp.runs import load_tokenizer
    from jaxnlp.training import export

    tokenizer = None if data is None else load_tokenizer(data)
    print(export(folder, output, step=step, tokenizer=tokenizer, dtype=dtype, max_shard_size=max_shard_size))


if __name__ == "__main__":
    sys.exit(run(app, "export"))
