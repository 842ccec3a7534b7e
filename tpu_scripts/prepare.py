"""From raw text to blocks: read and clean a corpus, hold some of it out, train a tokenizer, tokenise and pack.

    python tpu_scripts/prepare.py tpu_scripts/configs/codeparrot_small.py --data /data/codeparrot

Run it once, on one machine with many cores; the folder it makes is what `pretrain.py` reads on every host. Stopped, it
goes on where it was.
"""

import json
import os
import sys
from pathlib import Path
from typing import Annotated

if __package__ in (None, ""):
    root = Path(__file__).resolve().parent.parent
    sys.path[:0] = [str(root / "shared"), str(root)]  # a checkout that nobody installed
os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")

import typer
from rich.console import Console

from tpu_scripts._program import run

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.command()
def main(
    config: Annotated[Path, typer.Argument(help="A run: a Python file with CONFIG, or a .json file.")],
    overrides: Annotated[list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="held_out=0.1, ...")] = None,
    data: Annotated[Path, typer.Option(help="The folder to make.")] = Path("data"),
    workers: Annotated[int, typer.Option(help="Processes that clean; all cores by default.")] = os.cpu_count() or 1,
    as_json: Annotated[bool, typer.Option("--json", help="Print only JSON on standard output.")] = False,
) -> None:
    """Reads and cleans a corpus, holds some of it out, trains a tokenizer, tokenises and packs: raw text to blocks."""
    from dataclasses import asdict

    from duonlp.runs import load_run, prepare

    console = Console(stderr=True)
    with console.status("") as status:

        def say(what: str) -> None:
            status.update(what)
            if not console.is_terminal:
                print(what, file=sys.stderr, flush=True)

        made = prepare(load_run(config, overrides or ()), data, workers=workers, on_progress=say)
    manifests = {"training": made.training.manifest, "held_out": made.held_out.manifest}
    if as_json:
        blocks = {side: asdict(manifest) for side, manifest in manifests.items()}
        print(json.dumps({"corpus": made.corpus, "tokenizer": made.tokenizer_report, "blocks": blocks}, indent=2))
        return
    print(
        f"corpus: kept {made.corpus['kept']['documents']:,} of {made.corpus['documents']:,} documents", file=sys.stderr
    )
    for side, manifest in manifests.items():
        print(
            f"{side}: {manifest.documents:,} documents, {manifest.tokens:,} tokens in {manifest.blocks:,} blocks of "
            f"{manifest.block_length}",
            file=sys.stderr,
        )
    print(data)


if __name__ == "__main__":
    sys.exit(run(app, "prepare"))
