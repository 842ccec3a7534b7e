"""The forward pass of an encoder: tfnlp and jaxnlp beside Transformers on PyTorch and keras-hub on both backends.

    python -m benchmarks forward [--rounds 15] [--sizes MiniLM-L6 BERT-base] [--shapes 1x32 32x128] [--json]

All compute in float32 with all cores and random weights; the speed does not depend on their values. A contestant that
is not installed is left out.
"""

import argparse
import json
import statistics
import sys

from benchmarks._interleave import interleave, machine, ratios

SIZES = {
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


def prepare(name: str, setting: dict):
    """A function that runs one batch through the contestant's model."""
    import numpy as np

    batch, length = setting["batch"], setting["length"]
    hf = SIZES[setting["size"]]
    rng = np.random.default_rng(0)
    ids = rng.integers(5, 30000, (batch, length)).astype(np.int32)
    mask = np.ones((batch, length), np.int32)
    mask[1::2, -length // 4 :] = 0  # every other row is padded
    return globals()["_" + name.replace("-", "_")](hf, ids, mask)


def _transformers_torch(hf, ids, mask):
    import torch
    from transformers import BertConfig, BertModel

    model = BertModel(BertConfig(**{k: v for k, v in hf.items() if k != "model_type"})).eval()
    ids, mask = torch.tensor(ids).long(), torch.tensor(mask)

    def work():
        with torch.inference_mode():
            model(input_ids=ids, attention_mask=mask)["last_hidden_state"].numpy()

    return work


def _tfnlp(hf, ids, mask):
    import tfnlp

    run = tfnlp.compiled(tfnlp.AutoModel.from_config(hf))
    return lambda: run(input_ids=ids, attention_mask=mask)["last_hidden_state"]


def _jaxnlp(hf, ids, mask):
    import jax

    import jaxnlp

    run = jaxnlp.compiled(jaxnlp.AutoModel.from_config(hf))
    return lambda: jax.device_get(run(input_ids=ids, attention_mask=mask)["last_hidden_state"])


def _keras_hub(hf):
    from keras_hub.models import BertBackbone

    return BertBackbone(
        vocabulary_size=30522,
        num_layers=hf["num_hidden_layers"],
        num_heads=hf["num_attention_heads"],
        hidden_dim=hf["hidden_size"],
        intermediate_dim=hf["intermediate_size"],
    )


def _keras_hub_inputs(ids, mask):
    return {"token_ids": ids, "segment_ids": ids * 0, "padding_mask": mask}


def _keras_hub_tensorflow(hf, ids, mask):
    import tensorflow as tf

    run, inputs = tf.function(_keras_hub(hf)), _keras_hub_inputs(ids, mask)
    inputs = {k: tf.constant(v) for k, v in inputs.items()}
    return lambda: run(inputs)["sequence_output"].numpy()


def _keras_hub_jax(hf, ids, mask):
    import jax

    model = _keras_hub(hf)
    variables = [v.value for v in model.trainable_variables], [v.value for v in model.non_trainable_variables]
    run = jax.jit(lambda *args: model.stateless_call(*args)[0])
    inputs = _keras_hub_inputs(ids, mask)
    return lambda: jax.device_get(run(*variables, inputs)["sequence_output"])


def main(arguments=None) -> None:
    """Run and print."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks forward", description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--sizes", nargs="+", choices=SIZES, default=list(SIZES))
    parser.add_argument("--shapes", nargs="+", default=["1x32", "32x128"])
    parser.add_argument("--contestants", nargs="+", choices=CONTESTANTS, default=list(CONTESTANTS))
    parser.add_argument("--json", action="store_true", help="print JSON alone")
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
            for name, values in seconds.items():
                if values:
                    milliseconds = 1000 * statistics.median(values)
                    records.append(setting | {"name": name, "ms": milliseconds, "ratio": relative.get(name)})
                elif not options.json:
                    print(f"  {name} does not run here and is left out", file=sys.stderr)
    report = {"benchmark": "forward", "machine": machine(), "rounds": options.rounds, "results": records}
    print(json.dumps(report, indent=2) if options.json else table(report))


def table(report: dict) -> str:
    """The report as a Markdown table; a ratio below 1 is faster than PyTorch."""
    lines = ["| model | batch x length | | ms | ratio to PyTorch |", "|---|---|---|---:|---:|"]
    for r in report["results"]:
        ratio = "" if r["ratio"] is None else f"{r['ratio']:.2f}"
        lines.append(f"| {r['size']} | {r['batch']} x {r['length']} | {r['name']} | {r['ms']:.1f} | {ratio} |")
    m = report["machine"]
    versions = ", ".join(f"{k} {v}" for k, v in m["versions"].items())
    return "\n".join([*lines, "", f"{report['rounds']} rounds; {m['cores']} cores of {m['processor']}; {versions}"])


if __name__ == "__main__":
    main()
