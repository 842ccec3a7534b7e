"""Time int8 models of both engines against PyTorch in float32 and the int8 models of ONNX Runtime, OpenVINO and LiteRT.

    python -m benchmarks quantization [--rounds 9] [--sizes MiniLM-L6 BERT-base] [--shapes 1x32 1x128 32x128] [--json]
    python -m benchmarks quantization --decode [--searches 1x1 8x1 1x5]

Classifiers with random weights, and with --decode a GPT-2 of 124 million parameters that writes 32 tokens. All cores. A
contestant that is not installed is skipped: pip install "duonlp[quantization-peers]".
"""

import argparse
import statistics
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks._interleave import Setting, Work, interleave, machine, ratios, write_in_subprocess
from benchmarks._report import drop_missing, footer
from benchmarks.forward import SIZES
from duonlp.util.json_text import to_json

if TYPE_CHECKING:
    import numpy as np

REFERENCE = "transformers-torch"
CLASSIFIERS = (
    REFERENCE,
    "onnxruntime-int8",
    "openvino-int8",
    "litert-int8",
    "tfnlp",
    "jaxnlp",
    "tfnlp-int8",
    "jaxnlp-int8",
)
DECODERS = (REFERENCE, "tfnlp", "jaxnlp", "tfnlp-int8", "jaxnlp-int8")
ENVIRONMENTS = {name: {"KERAS_BACKEND": "tensorflow"} for name in CLASSIFIERS if name.startswith("tfnlp")}
PROMPT, NEW_TOKENS = 16, 32


def prepare(name: str, setting: Setting) -> Work:
    """Return a function that runs one batch through the contestant's classifier, or lets its decoder write.

    Args:
        name: One of CLASSIFIERS or DECODERS.
        setting: ``folder`` of the checkpoint, ``batch``, ``length``, and for decoders ``beams``.
    """
    import numpy as np

    batch, length = setting["batch"], setting["length"]
    ids = np.random.default_rng(0).integers(1000, 30000, (batch, length)).astype(np.int32)
    if "beams" in setting:
        return _decoder(name, Path(setting["folder"]), ids, setting["beams"])
    inputs = {"input_ids": ids, "attention_mask": np.ones_like(ids), "token_type_ids": np.zeros_like(ids)}
    return globals()["_" + name.split("-")[0]](name, Path(setting["folder"]), inputs)


def _transformers(name: str, folder: Path, inputs: "dict[str, np.ndarray]") -> Work:
    import torch
    from transformers import AutoModelForSequenceClassification

    model = AutoModelForSequenceClassification.from_pretrained(folder).eval()
    tensors = {name: torch.tensor(value).long() for name, value in inputs.items()}

    def work():
        with torch.inference_mode():
            model(**tensors).logits.numpy()

    return work


def _onnxruntime(name: str, folder: Path, inputs: "dict[str, np.ndarray]") -> Work:
    import onnxruntime

    session = onnxruntime.InferenceSession(folder / "int8.onnx", providers=["CPUExecutionProvider"])
    wide = {name: value.astype("int64") for name, value in inputs.items()}
    return lambda: session.run(None, wide)


def _openvino(name: str, folder: Path, inputs: "dict[str, np.ndarray]") -> Work:
    import openvino

    compiled = openvino.Core().compile_model(folder / "int8.onnx", "CPU", {"PERFORMANCE_HINT": "LATENCY"})
    wide = {name: value.astype("int64") for name, value in inputs.items()}
    return lambda: compiled(wide)


def _litert(name: str, folder: Path, inputs: "dict[str, np.ndarray]") -> Work:
    import os

    from ai_edge_litert.interpreter import Interpreter

    interpreter = Interpreter(str(folder / "int8.tflite"), num_threads=os.cpu_count())
    runner = interpreter.get_signature_runner()
    return lambda: runner(**inputs)


def _engine(name: str) -> tuple[Any, bool]:
    import importlib

    return importlib.import_module(name.removesuffix("-int8")), name.endswith("-int8")


def _tfnlp(name: str, folder: Path, inputs: "dict[str, np.ndarray]") -> Work:
    import numpy as np

    package, is_int8 = _engine(name)
    model = package.AutoModelForSequenceClassification.from_pretrained(folder)
    run = package.compiled(package.quantize(model, "int8") if is_int8 else model)
    return lambda: np.asarray(run(**inputs)["logits"])


_jaxnlp = _tfnlp


def _decoder(name: str, folder: Path, ids: "np.ndarray", beams: int) -> Work:
    if name == REFERENCE:
        import torch
        from transformers import AutoModelForCausalLM

        reference, prompt = AutoModelForCausalLM.from_pretrained(folder).eval(), torch.tensor(ids).long()
        options: dict[str, Any] = {"attention_mask": torch.ones_like(prompt), "pad_token_id": 0}

        def work():
            with torch.inference_mode():
                reference.generate(
                    prompt,
                    do_sample=False,
                    num_beams=beams,
                    min_new_tokens=NEW_TOKENS,
                    max_new_tokens=NEW_TOKENS,
                    **options,
                )

        return work
    package, is_int8 = _engine(name)
    model = package.AutoModelForCausalLM.from_pretrained(folder)
    model = package.quantize(model, "int8") if is_int8 else model
    return lambda: model.generate(
        ids, do_sample=False, num_beams=beams, min_new_tokens=NEW_TOKENS, max_new_tokens=NEW_TOKENS
    )


def write(folder: str, size: str) -> None:
    """Write a checkpoint with PyTorch, and for a classifier its files for the peers that are installed."""
    import torch
    from transformers import BertConfig, BertForSequenceClassification, GPT2Config, GPT2LMHeadModel

    torch.manual_seed(0)
    if size == "GPT-2":
        GPT2LMHeadModel(GPT2Config()).save_pretrained(folder)
        return
    options = {name: value for name, value in SIZES[size].items() if name != "model_type"}
    model = BertForSequenceClassification(BertConfig(num_labels=151, **options)).eval()
    model.save_pretrained(folder)
    names = ("input_ids", "attention_mask", "token_type_ids")
    axes = {0: torch.export.Dim("batch", min=1, max=4096), 1: torch.export.Dim("length", min=1, max=512)}
    ids = torch.ones((2, 16), dtype=torch.long)
    for write_peer in (_write_onnx, _write_litert):
        try:
            write_peer(Path(folder), model, names, (ids,) * 3, (axes,) * 3)
        except Exception as error:  # a peer that is not installed, or cannot convert the model, is left out
            print(f"  {write_peer.__name__.removeprefix('_write_')}: {error}"[:200], file=sys.stderr)


def _write_onnx(folder: Path, model: Any, names: tuple[str, ...], inputs: Any, axes: Any) -> None:
    import torch
    from onnxruntime.quantization import QuantType, quantize_dynamic

    class Logits(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.model = model

        def forward(self, *arrays):
            return self.model(**dict(zip(names, arrays, strict=True))).logits

    torch.onnx.export(
        Logits(), inputs, str(folder / "float.onnx"), dynamo=True, dynamic_shapes=(axes,), input_names=list(names),
        output_names=["logits"], external_data=False, verbose=False,
    )  # fmt: skip
    quantize_dynamic(folder / "float.onnx", folder / "int8.onnx", weight_type=QuantType.QInt8, per_channel=True)


def _write_litert(folder: Path, model: Any, names: tuple[str, ...], inputs: Any, axes: Any) -> None:
    import tensorflow as tf

    import tfnlp

    tfnlp.AutoModelForSequenceClassification.from_pretrained(folder).export(folder / "saved_model")
    converter = tf.lite.TFLiteConverter.from_saved_model(str(folder / "saved_model"))
    converter.optimizations = [tf.lite.Optimize.DEFAULT]  # int8 weights, and activations quantized while it runs
    (folder / "int8.tflite").write_bytes(converter.convert())


def main(arguments: list[str] | None = None) -> None:
    """Run the benchmark and print a table or JSON."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks quantization", description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=9, help="timed turns of each contestant (default %(default)s)")
    parser.add_argument("--sizes", nargs="+", choices=SIZES, default=list(SIZES), help="model sizes (default: all)")
    parser.add_argument("--shapes", nargs="+", default=["1x32", "1x128", "32x128"], help="batch shapes, ROWSxTOKENS")
    parser.add_argument("--decode", action="store_true", help="time a decoder instead of classifiers")
    parser.add_argument("--searches", nargs="+", default=["1x1", "8x1", "1x5"], help="searches to time, ROWSxBEAMS")
    parser.add_argument("--contestants", nargs="+", metavar="NAME", help="what to compare (default: all)")
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    options = parser.parse_args(arguments)
    names = options.contestants or (DECODERS if options.decode else CLASSIFIERS)
    records = []
    for size in ["GPT-2"] if options.decode else options.sizes:
        with tempfile.TemporaryDirectory() as folder:
            write_in_subprocess(write, folder, size)
            for shape in options.searches if options.decode else options.shapes:
                rows, second = map(int, shape.split("x"))
                what = (
                    {"batch": rows, "length": PROMPT, "beams": second}
                    if options.decode
                    else {"batch": rows, "length": second}
                )
                if not options.json:
                    print(f"{size} {shape} ...", file=sys.stderr, flush=True)
                setting = what | {"folder": folder}
                seconds = interleave("benchmarks.quantization", names, setting, options.rounds, ENVIRONMENTS)
                relative = ratios(seconds, REFERENCE)
                for name, values in drop_missing(seconds, options.json):
                    milliseconds = 1000 * statistics.median(values) / (NEW_TOKENS if options.decode else 1)
                    speed = 1 / relative[name] if name in relative else None
                    records.append({"size": size, **what, "name": name, "ms": milliseconds, "times_faster": speed})
    report = {"benchmark": "quantization", "machine": machine(), "rounds": options.rounds, "results": records}
    print(to_json(report, indent=2) if options.json else table(report))


def table(report: dict[str, Any]) -> str:
    """Return the report as a Markdown table; the milliseconds of a decoder are those of one step."""
    lines = ["| model | batch x length | | ms | times faster than PyTorch float32 |", "|---|---|---|---:|---:|"]
    for r in report["results"]:
        shape = f"{r['batch']} x {r['length']}" + (f", {r['beams']} beams" if "beams" in r else "")
        speed = "" if r["times_faster"] is None else f"{r['times_faster']:.2f}"
        lines.append(f"| {r['size']} | {shape} | {r['name']} | {r['ms']:.1f} | {speed} |")
    return "\n".join([*lines, "", footer(report)])


if __name__ == "__main__":
    main()
