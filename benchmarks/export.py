"""Time exported classifiers beside the engines' own and PyTorch.

    python -m benchmarks export [--rounds 9] [--sizes MiniLM-L6 BERT-base] [--shapes 1x32 32x128] [--json]

Classifiers with random weights, on all cores: ONNX (for all shapes), LiteRT (for the shape), SavedModel and StableHLO as
`duonlp export` writes them, ONNX and LiteRT also as dynamic int8, and PyTorch's own export to ONNX. A contestant that is not
installed is skipped: pip install "duonlp[quantization-peers]".
"""

import argparse
import statistics
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks import quantization
from benchmarks._interleave import Setting, Work, interleave, machine, ratios, write_in_subprocess
from benchmarks._report import drop_missing
from benchmarks.forward import SIZES
from duonlp.util.json_text import to_json

if TYPE_CHECKING:
    import numpy as np

REFERENCE = quantization.REFERENCE
EXPORTS = {
    "onnx": {"to": "onnx"}, "onnx-int8": {"to": "onnx", "int8": "dynamic"}, "litert": {"to": "litert"},
    "litert-int8": {"to": "litert", "int8": "dynamic"}, "savedmodel": {"to": "savedmodel"}, "stablehlo": {"to": "stablehlo"},
}  # fmt: skip
"""Contestants that are exported, and their settings."""

CONTESTANTS = (REFERENCE, "tfnlp", "jaxnlp", "torch-onnx", "torch-onnx-int8", *EXPORTS)
ENVIRONMENTS = {name: {"KERAS_BACKEND": "tensorflow"} for name in ("tfnlp", "savedmodel")}


def prepare(name: str, setting: Setting) -> Work:
    """Return a function that runs one batch through the contestant's classifier.

    Args:
        name: One of CONTESTANTS.
        setting: ``folder`` of the checkpoint, ``batch`` and ``length``.
    """
    import numpy as np

    if name in (REFERENCE, "tfnlp", "jaxnlp"):
        return quantization.prepare(name, setting)
    ids = np.random.default_rng(0).integers(1000, 30000, (setting["batch"], setting["length"])).astype(np.int32)
    inputs = {"input_ids": ids, "attention_mask": np.ones_like(ids), "token_type_ids": np.zeros_like(ids)}
    return (_torch_onnx if name.startswith("torch") else _exported)(name, Path(setting["folder"]), inputs)


def _torch_onnx(name: str, folder: Path, inputs: "dict[str, np.ndarray]") -> Work:
    from duonlp.export.sessions import OnnxSession

    session = OnnxSession(folder / ("int8.onnx" if name.endswith("int8") else "float.onnx"))
    return lambda: session(inputs)


def _exported(name: str, folder: Path, inputs: "dict[str, np.ndarray]") -> Work:
    import importlib

    from duonlp.export import ExportedModel, find_exported

    engine = {"savedmodel": "tfnlp", "stablehlo": "jaxnlp"}.get(name)
    runtimes = {} if engine is None else importlib.import_module(engine + ".export").RUNTIMES
    files = find_exported(folder / _folder_of(name, inputs["input_ids"].shape))
    if files is None:
        raise FileNotFoundError(f"{name} was not exported")
    model = ExportedModel.open(files, runtimes)
    return lambda: model(**inputs)


def _folder_of(name: str, shape: tuple[int, ...]) -> str:
    return f"{name}-{shape[0]}x{shape[1]}" if name.startswith("litert") else name


def write(folder: str, size: str, shapes: str) -> None:
    """Write a checkpoint with PyTorch, and its exports; those that are not installed are left out."""
    from duonlp.export import ExportSettings
    from duonlp.runs.export import export_checkpoint

    quantization.write(folder, size)
    for name, settings in EXPORTS.items():
        sizes: list[tuple[int, ...]] = [tuple(map(int, shape.split("x"))) for shape in shapes.split()]
        for rows, length in sizes if name.startswith("litert") else sizes[:1]:
            static = {"batch_size": rows, "length": length} if name.startswith("litert") else {}
            output = Path(folder) / _folder_of(name, (rows, length))
            try:
                report = export_checkpoint(folder, output, ExportSettings(**settings, **static))
            except Exception as error:
                print(f"  {name}: {error}"[:300], file=sys.stderr)
            else:
                print(f"  {output.name}: largest difference {max(report['differences'].values()):.1e}", file=sys.stderr)


def main(arguments: list[str] | None = None) -> None:
    """Run the benchmark and print a table or JSON."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks export", description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=9, help="timed turns of each contestant (default %(default)s)")
    parser.add_argument(
        "--sizes", nargs="+", choices=SIZES, default=["MiniLM-L6"], help="model sizes (default MiniLM-L6)"
    )
    parser.add_argument("--shapes", nargs="+", default=["1x32", "32x128"], help="batch shapes, ROWSxTOKENS")
    parser.add_argument("--contestants", nargs="+", choices=CONTESTANTS, default=CONTESTANTS, help="(default: all)")
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    options = parser.parse_args(arguments)
    records = []
    for size in options.sizes:
        with tempfile.TemporaryDirectory() as folder:
            write_in_subprocess(write, folder, size, " ".join(options.shapes))
            for shape in options.shapes:
                rows, length = map(int, shape.split("x"))
                setting = {"batch": rows, "length": length, "folder": folder}
                seconds = interleave("benchmarks.export", options.contestants, setting, options.rounds, ENVIRONMENTS)
                relative = ratios(seconds, REFERENCE)
                for name, values in drop_missing(seconds, options.json):
                    record: dict[str, Any] = {"size": size, "batch": rows, "length": length, "name": name}
                    record["ms"] = 1000 * statistics.median(values)
                    records.append(record | {"times_faster": 1 / relative[name] if name in relative else None})
    report = {"benchmark": "export", "machine": machine(), "rounds": options.rounds, "results": records}
    print(to_json(report, indent=2) if options.json else quantization.table(report))


if __name__ == "__main__":
    main()
