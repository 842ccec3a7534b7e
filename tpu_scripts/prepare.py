"""Turn raw text into training blocks: clean a corpus, hold out a part, train a tokenizer, tokenize and pack.

    python tpu_scripts/prepare.py tpu_scripts/configs/codeparrot_small.py --data /data/codeparrot

Run it once, on one machine with many cores; `pretrain.py` reads the resulting folder on every host. If it is stopped, the
same command resumes.
"""

import os
import sys
from pathlib import Path
from typing import Annotated

if __package__ in (None, ""):
    root = Path(__file__).resolve().parent.parent
    sys.path[:0] = [str(root / "shared"), str(root)]  # run from a checkout that is not installed
os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")

import typer

from duonlp.util.json_text import to_json
from tpu_scripts._program import run

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.command()
def main(
    config: Annotated[Path, typer.Argument(help="Run file: a Python file with CONFIG, or a .json file.")],
    overrides: Annotated[
        list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="Settings to override, such as held_out=0.1.")
    ] = None,
    data: Annotated[Path, typer.Option(help="Folder to write.")] = Path("data"),
    workers: Annotated[
        int, typer.Option(help="Processes that clean the corpus (default: one per core).", show_default=False)
    ] = os.cpu_count() or 1,
    as_json: Annotated[bool, typer.Option("--json", help="Print only JSON on standard output.")] = False,
) -> None:
    """Turn raw text into training blocks: clean, hold out, train a tokenizer, tokenize and pack."""
    from dataclasses import asdict

    from rich.text import Text

    from duonlp.runs import load_run, prepare
    from duonlp.util.console import plain_console

    console = plain_console(stderr=True)
    with console.status("") as status:

        def say(text: str) -> None:
            status.update(Text(text))
            if not console.is_terminal:
                print(text, file=sys.stderr, flush=True)

        prepared = prepare(load_run(config, overrides or ()), data, workers=workers, on_progress=say)
    manifests = {"training": prepared.training.manifest, "held_out": prepared.held_out.manifest}
    if as_json:
        blocks = {side: asdict(manifest) for side, manifest in manifests.items()}
        report = {"corpus": prepared.corpus, "tokenizer": prepared.tokenizer_report, "blocks": blocks}
        print(to_json(report, indent=2))
        return
    kept, total = prepared.corpus["kept"]["documents"], prepared.corpus["documents"]
    print(f"corpus: kept {kept:,} of {total:,} documents", file=sys.stderr)
    for side, manifest in manifests.items():
        print(
            f"{side}: {manifest.documents:,} documents, {manifest.tokens:,} tokens in {manifest.blocks:,} blocks of "
            f"{manifest.block_length}",
            file=sys.stderr,
        )
    print(data)


if __name__ == "__main__":
    sys.exit(run(app, "prepare"))
