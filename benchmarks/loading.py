"""Measure the time and the extra memory that from_pretrained takes to load a checkpoint.

    python -m benchmarks loading [--checkpoint FOLDER] [--json]

The default checkpoint has BERT-base's size and random weights, and is written to a temporary folder. Memory is the resident set
of a fresh process before, at the peak of and after loading, read from /proc (so Linux only).
"""

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from duonlp.util.json_text import to_json

CODE = """
import json, sys, time
import {package}
def status(key):
    with open("/proc/self/status") as f:
        return next(int(line.split()[1]) / 1024 for line in f if line.startswith(key))
small = {package}.AutoModel.from_config({{"model_type": "bert", "hidden_size": 48, "num_hidden_layers": 1,
    "num_attention_heads": 4, "intermediate_size": 64, "vocab_size": 100}})  # imports whatever a first model loads lazily
before, start = status("VmRSS"), time.perf_counter()
model = {package}.AutoModel.from_pretrained(sys.argv[1])
seconds = time.perf_counter() - start
print(json.dumps({{"before": before, "peak": status("VmHWM"), "after": status("VmRSS"), "seconds": seconds}}))
"""


def measure(package: str, checkpoint: Path) -> dict[str, Any]:
    """Load a checkpoint once in a fresh process.

    Args:
        package: "tfnlp" or "jaxnlp".
        checkpoint: Folder in Hugging Face layout.

    Returns:
        ``package``; ``checkpoint_mib``; resident memory ``before``, ``peak`` and ``after`` in MiB; ``seconds``; and ``above``:
        the growth up to the peak minus the checkpoint's size, as a fraction of that size.
    """
    result = subprocess.run(
        [sys.executable, "-c", CODE.format(package=package), str(checkpoint)],
        capture_output=True,
        text=True,
        check=True,
    )
    record = json.loads(result.stdout.splitlines()[-1])
    size = sum(f.stat().st_size for f in checkpoint.glob("*.safetensors")) / 2**20
    above = (record["peak"] - record["before"] - size) / size
    return {"package": package, "checkpoint_mib": size, "above": above} | record


def main(arguments: list[str] | None = None) -> None:
    """Run the benchmark and print a table or JSON."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks loading", description=__doc__.splitlines()[0])
    parser.add_argument("--checkpoint", type=Path, help="folder to load (default: random weights of BERT-base's size)")
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as folder:
        checkpoint = options.checkpoint or _write_random(Path(folder) / "bert-base")
        records = [measure(package, checkpoint) for package in ("tfnlp", "jaxnlp")]
    if options.json:
        print(to_json(records, indent=2))
        return
    print("| | checkpoint MiB | peak above the model | seconds |\n|---|---:|---:|---:|")
    for r in records:
        print(f"| {r['package']} | {r['checkpoint_mib']:.0f} | {r['above']:.0%} | {r['seconds']:.2f} |")


def _write_random(folder: Path) -> Path:
    import numpy as np

    from duonlp.architectures import config_from_hf
    from duonlp.checkpoints import save_checkpoint
    from duonlp.parameters import initial_value, parameters

    cfg = config_from_hf({"model_type": "bert"})
    spec = parameters(cfg, "base")
    save_checkpoint(folder, cfg, "base", lambda path: initial_value(path, spec[path]), np.float32)
    return folder


if __name__ == "__main__":
    main()
