"""Time an encoder's forward pass: tfnlp and jaxnlp against Transformers on PyTorch and keras-hub on both backends.

    python -m benchmarks forward [--rounds 15] [--sizes MiniLM-L6 BERT-base] [--shapes 1x32 32x128] [--json]

float32, all cores, random weights (the speed does not depend on their values). A contestant that is not installed is skipped.
"""

import argparse
import statistics
import sys
from typing import TYPE_CHECKING, Any

from benchmarks._interleave import Setting, Work, interleave, machine, ratios
from benchmarks._report import drop_missing, footer
from duonlp.util.json_text import to_json

if TYPE_CHECKING:
    import numpy as np

SIZES: dict[str, dict[str, Any]] = {
    "MiniLM-L6": {
        "model_type": "bert", "hidden_size": 384, "num_hidden_layers": 6, "num_attention_heads": 12,
        "intermediate_size": 1536,
    },
    "BERT-base": {
        "model_type": "bert", "hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12,
        "intermediate_size": 3072,
    },
}  # fmt: skip
REFERENCE = "transformers-torch"
CONTESTANTS = (REFERENCE, "tfnlp", "jaxnlp", "keras-hub-tensorflow", "keras-hub-jax")
ENVIRONMENTS = {
    "tfnlp": {"KERAS_BACKEND": "tensorflow"},
    "keras-hub-tensorflow": {"KERAS_BACKEND": "tensorflow"},
    "keras-hub-jax": {"KERAS_BACKEND": "jax"},
}


def prepare(name: str, setting: Setting) -> Work:
    """Return a function that runs one batch through the contestant's model.

    Args:
        name: One of CONTESTANTS.
        setting: ``size`` (a key of SIZES), ``batch`` and ``length``.
    """
    import numpy as np

    batch, length = setting["batch"], setting["length"]
    hf = SIZES[setting["size"]]
    rng = np.random.default_rng(0)
    ids = rng.integers(5, 30000, (batch, length)).astype(np.int32)
    mask = np.ones((batch, length), np.int32)
    mask[1::2, -length // 4 :] = 0  # every other row is padded
    return globals()["_" + name.replace("-", "_")](hf, ids, mask)


def _transformers_torch(hf: dict[str, Any], ids: "np.ndarray", mask: "np.ndarray") -> Work:
    import torch
    from transformers import BertConfig, BertModel

    model = BertModel(BertConfig(**{k: v for k, v in hf.items() if k != "model_type"})).eval()
    inputs = {"input_ids": torch.tensor(ids).long(), "attention_mask": torch.tensor(mask)}

    def work():
        with torch.inference_mode():
            model(**inputs)["last_hidden_state"].numpy()

    return work


def _tfnlp(hf: dict[str, Any], ids: "np.ndarray", mask: "np.ndarray") -> Work:
    import tfnlp

    run = tfnlp.compiled(tfnlp.AutoModel.from_config(hf))
    return lambda: run(input_ids=ids, attention_mask=mask)["last_hidden_state"]


def _jaxnlp(hf: dict[str, Any], ids: "np.ndarray", mask: "np.ndarray") -> Work:
    import jax

    import jaxnlp

    run = jaxnlp.compiled(jaxnlp.AutoModel.from_config(hf))
    return lambda: jax.device_get(run(input_ids=ids, attention_mask=mask)["last_hidden_state"])


def _keras_hub(hf: dict[str, Any]) -> Any:
    from keras_hub.models import BertBackbone

    return BertBackbone(
        vocabulary_size=30522,
        num_layers=hf["num_hidden_layers"],
        num_heads=hf["num_attention_heads"],
        hidden_dim=hf["hidden_size"],
        intermediate_dim=hf["intermediate_size"],
    )


def _keras_hub_inputs(ids: "np.ndarray", mask: "np.ndarray") -> "dict[str, np.ndarray]":
    return {"token_ids": ids, "segment_ids": ids * 0, "padding_mask": mask}


def _keras_hub_tensorflow(hf: dict[str, Any], ids: "np.ndarray", mask: "np.ndarray") -> Work:
    import tensorflow as tf

    run = tf.function(_keras_hub(hf))
    inputs = {k: tf.constant(v) for k, v in _keras_hub_inputs(ids, mask).items()}
    return lambda: run(inputs)["sequence_output"].numpy()


def _keras_hub_jax(hf: dict[str, Any], ids: "np.ndarray", mask: "np.ndarray") -> Work:
    import jax

    model = _keras_hub(hf)
    variables = [v.value for v in model.trainable_variables], [v.value for v in model.non_trainable_variables]
    run = jax.jit(lambda *args: model.stateless_call(*args)[0])
    inputs = _keras_hub_inputs(ids, mask)
    return lambda: jax.device_get(run(*variables, inputs)["sequence_output"])


def main(arguments: list[str] | None = None) -> None:
    """Run the benchmark and print a table or JSON."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks forward", description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=15, help="timed turns of each contestant (default %(default)s)")
    parser.add_argument("--sizes", nargs="+", choices=SIZES, default=list(SIZES), help="model sizes (default: all)")
    parser.add_argument(
        "--shapes", nargs="+", default=["1x32", "32x128"], help="batch shapes, ROWSxTOKENS (default: 1x32 32x128)"
    )
    parser.add_argument(
        "--contestants", nargs="+", choices=CONTESTANTS, default=list(CONTESTANTS), metavar="NAME",
        help=f"what to compare (default: all of {', '.join(CONTESTANTS)})",
    )  # fmt: skip
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    options = parser.parse_args(arguments)
    records = []
    for size in options.sizes:
        for shape in options.shapes:
            batch, length = map(int, shape.split("x"))
            setting = {"size": size, "batch": batch, "length": length}
            if not options.json:
                print(f"{size} {shape} ...", file=sys.stderr, flush=True)
            seconds = interleave("benchmarks.forward", options.contestants, setting, options.rounds, ENVIRONMENTS)
            relative = ratios(seconds, REFERENCE)
            for name, values in drop_missing(seconds, options.json):
                milliseconds = 1000 * statistics.median(values)
                records.append(setting | {"name": name, "ms": milliseconds, "ratio": relative.get(name)})
    report = {"benchmark": "forward", "machine": machine(), "rounds": options.rounds, "results": records}
    print(to_json(report, indent=2) if options.json else table(report))


def table(report: dict[str, Any]) -> str:
    """Return the report as a Markdown table; a ratio below 1 is faster than PyTorch."""
    lines = ["| model | batch x length | | ms | ratio to PyTorch |", "|---|---|---|---:|---:|"]
    for r in report["results"]:
        ratio = "" if r["ratio"] is None else f"{r['ratio']:.2f}"
        lines.append(f"| {r['size']} | {r['batch']} x {r['length']} | {r['name']} | {r['ms']:.1f} | {ratio} |")
    return "\n".join([*lines, "", footer(report)])


if __name__ == "__main__":
    main()
