"""A fine-tuning step of MiniLM-L6 as a text classifier: jaxnlp and tfnlp beside Transformers on PyTorch and keras-hub.

    python -m benchmarks finetune [--rounds 9] [--shape 32x32] [--no-dropout] [--contestants jaxnlp tfnlp ...] [--json]

BERT of 6 layers of width 384 with 151 labels (those of CLINC150), random weights that all read from one checkpoint, random
tokens, a quarter of every other row padding. Everyone does whole optimizer steps: forward with dropout of 0.1 where BERT has
it, backward, gradients clipped to a global norm of 1, AdamW with a decay of 0.01 on matrices alone. bfloat16 means that products
are computed in it; parameters and optimizer are float32 (PyTorch: autocast; Keras: mixed_bfloat16).

With --no-dropout the losses of the first three steps of all must agree, or the run fails: the second and third tell whether
gradients, clipping and optimizer are the same. A contestant that is not installed is left out. ``tfnlp`` is compiled as
``compile()`` is by default; ``tfnlp-xla`` and ``tfnlp-graph`` are jit_compile=True and False.
"""

import argparse
import json
import multiprocessing
import statistics
import sys
import tempfile
from pathlib import Path

from benchmarks._interleave import interleave, machine, ratios
from benchmarks._report import footer, that_ran

BERT = {
    "vocab_size": 30522, "hidden_size": 384, "num_hidden_layers": 6, "num_attention_heads": 12, "intermediate_size": 1536,
    "max_position_embeddings": 512, "num_labels": 151,
}  # fmt: skip
LEARNING_RATE, BETA1, BETA2, EPSILON, WEIGHT_DECAY, CLIP_NORM = 1e-4, 0.9, 0.999, 1e-8, 0.01, 1.0
DROPOUT = 0.1
COMPARED = 3
"""Steps whose losses are compared."""
TOLERANCE = {"float32": 1e-4, "bfloat16": 2e-2}
"""Largest relative difference from PyTorch's loss."""
OTHER_GELU = 5e-4
"""The same of keras-hub, whose BERT has the tanh approximation of gelu."""

REFERENCE = "transformers-torch"
HALF = "-bfloat16"
USUAL = (REFERENCE, "jaxnlp", "tfnlp", "keras-hub-tensorflow", "keras-hub-jax")
NAMES = *USUAL, "tfnlp-xla", "tfnlp-graph"
CONTESTANTS = tuple(name + half for half in ("", HALF) for name in NAMES)
ENVIRONMENTS = {
    name + half: {"KERAS_BACKEND": "jax" if name.endswith("-jax") else "tensorflow"}
    for half in ("", HALF)
    for name in NAMES
    if name not in (REFERENCE, "jaxnlp")
}


def write_checkpoint(folder: str, dropout: float) -> None:
    """The random weights that all start from, in Hugging Face layout."""
    import torch
    from transformers import BertConfig, BertForSequenceClassification
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()
    torch.manual_seed(0)
    rates = {"hidden_dropout_prob": dropout, "attention_probs_dropout_prob": dropout}
    BertForSequenceClassification(BertConfig(**BERT, **rates)).save_pretrained(folder)


def prepare(name: str, setting: dict):
    """A function that does one optimizer step; the losses of the first ones are left in the setting's folder."""
    import numpy as np

    batch, length = setting["batch"], setting["length"]
    rng = np.random.default_rng(0)
    inputs = {
        "input_ids": rng.integers(1000, BERT["vocab_size"], (batch, length)).astype(np.int32),
        "attention_mask": np.ones((batch, length), np.int32),
        "token_type_ids": np.zeros((batch, length), np.int32),
    }
    inputs["attention_mask"][1::2, length - length // 4 :] = 0
    labels = rng.integers(0, BERT["num_labels"], batch).astype(np.int32)
    dtype = "bfloat16" if name.endswith(HALF) else "float32"
    step = globals()["_" + name.removesuffix(HALF).replace("-", "_")](setting, dtype, inputs, labels)
    losses = []

    def work():
        loss = step()
        if len(losses) < COMPARED:
            losses.append(loss)
            if len(losses) == COMPARED:
                (Path(setting["folder"]) / f"{name}.json").write_text(json.dumps(losses), encoding="utf-8")

    return work


def _transformers_torch(setting, dtype, inputs, labels):
    import torch
    from transformers import AutoModelForSequenceClassification

    model = AutoModelForSequenceClassification.from_pretrained(setting["folder"]).train()
    matrices = [p for p in model.parameters() if p.ndim > 1]
    vectors = [p for p in model.parameters() if p.ndim <= 1]
    groups = [{"params": matrices, "weight_decay": WEIGHT_DECAY}, {"params": vectors, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=LEARNING_RATE, betas=(BETA1, BETA2), eps=EPSILON, fused=True)
    inputs = {name: torch.tensor(value).long() for name, value in inputs.items()}
    labels = torch.tensor(labels).long()

    def step():
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=dtype == "bfloat16"):
            loss = model(**inputs, labels=labels)["loss"]
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), CLIP_NORM)
        optimizer.step()
        return loss.item()

    return step


def _jaxnlp(setting, dtype, inputs, labels):
    from duonlp.util import keep_heap

    keep_heap()  # as fit does
    import jaxnlp
    from duonlp.training import FitConfig
    from jaxnlp.training.fit_step import FitStep
    from jaxnlp.training.mesh import make_mesh

    model = jaxnlp.AutoModelForSequenceClassification.from_pretrained(setting["folder"], dtype=dtype)
    config = FitConfig(weight_decay=WEIGHT_DECAY, beta1=BETA1, beta2=BETA2, clip_norm=CLIP_NORM)
    fit_step = FitStep(model, config, make_mesh())
    state = fit_step.init_state()
    batch = fit_step.put(inputs | {"labels": labels})

    def step():
        nonlocal state
        state, known = fit_step(state, batch, LEARNING_RATE)
        return float(known["loss"])

    return step


def _tfnlp(setting, dtype, inputs, labels, jit_compile="auto"):
    from duonlp.util import keep_heap

    keep_heap()  # as fit does
    import tfnlp
    from tfnlp.training.optimizers import make_optimizer

    model = tfnlp.AutoModelForSequenceClassification.from_pretrained(setting["folder"], dtype=dtype)
    options = {"weight_decay": WEIGHT_DECAY, "beta1": BETA1, "beta2": BETA2, "clip_norm": CLIP_NORM}
    optimizer = make_optimizer("adamw", LEARNING_RATE, model, epsilon=EPSILON, **options)
    model.compile(optimizer, jit_compile=jit_compile)
    return _keras_step(model, inputs | {"labels": labels}, None)


def _tfnlp_xla(setting, dtype, inputs, labels):
    return _tfnlp(setting, dtype, inputs, labels, jit_compile=True)


def _tfnlp_graph(setting, dtype, inputs, labels):
    return _tfnlp(setting, dtype, inputs, labels, jit_compile=False)


def _keras_hub(setting, dtype, inputs, labels):
    import keras
    import numpy as np
    from keras_hub.models import BertBackbone, BertTextClassifier
    from safetensors.numpy import load_file

    policy = "mixed_bfloat16" if dtype == "bfloat16" else "float32"
    backbone = BertBackbone.from_preset(setting["folder"], dropout=setting["dropout"], dtype=policy)
    model = BertTextClassifier(backbone, BERT["num_labels"], dropout=setting["dropout"])
    weights = load_file(Path(setting["folder"]) / "model.safetensors")
    model.output_dense.set_weights([np.ascontiguousarray(weights["classifier.weight"].T), weights["classifier.bias"]])
    optimizer = keras.optimizers.AdamW(
        LEARNING_RATE, weight_decay=WEIGHT_DECAY, beta_1=BETA1, beta_2=BETA2, epsilon=EPSILON, global_clipnorm=CLIP_NORM
    )
    optimizer.exclude_from_weight_decay(var_list=[v for v in model.trainable_variables if len(v.shape) <= 1])
    model.compile(optimizer, loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    names = {"token_ids": "input_ids", "padding_mask": "attention_mask", "segment_ids": "token_type_ids"}
    return _keras_step(model, {name: inputs[ours] for name, ours in names.items()}, labels)


_keras_hub_tensorflow = _keras_hub_jax = _keras_hub  # the environment says which backend


def _keras_step(model, x, y):
    def step():
        model.reset_metrics()  # "loss" is a mean since then
        return float(model.train_on_batch(x, y, return_dict=True)["loss"])

    return step


def main(arguments=None) -> None:
    """Run and print."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks finetune", description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--shape", default="32x32", help="rows x tokens of a batch")
    parser.add_argument("--no-dropout", action="store_true", help="and check that the first losses agree")
    usual = [name + half for half in ("", HALF) for name in USUAL]
    parser.add_argument("--contestants", nargs="+", choices=CONTESTANTS, default=usual)
    parser.add_argument("--json", action="store_true", help="print JSON alone")
    options = parser.parse_args(arguments)
    batch, length = map(int, options.shape.split("x"))
    setting = {"batch": batch, "length": length, "dropout": 0.0 if options.no_dropout else DROPOUT}
    first_calls, losses = {}, {}
    with tempfile.TemporaryDirectory() as folder:
        # in a process of its own, so that no threads of PyTorch's stay here
        written = folder, setting["dropout"]
        writer = multiprocessing.get_context("spawn").Process(target=write_checkpoint, args=written)
        writer.start()
        writer.join()
        if writer.exitcode:
            sys.exit('no checkpoint could be written; it takes PyTorch: pip install "duonlp[parity]"')
        seconds = interleave(
            "benchmarks.finetune", options.contestants, setting | {"folder": folder}, options.rounds, ENVIRONMENTS,
            first_calls=first_calls,
        )  # fmt: skip
        for name, _ in that_ran(seconds, options.json):
            losses[name] = json.loads((Path(folder) / f"{name}.json").read_text(encoding="utf-8"))
    records = [record for half in ("", HALF) for record in _records(half, setting, seconds, first_calls, losses)]
    report = {"benchmark": "finetune", "machine": machine(), "rounds": options.rounds, "results": records}
    print(json.dumps(report, indent=2) if options.json else table(report))
    if options.no_dropout:
        _check_losses(records)


def _records(half: str, setting: dict, seconds: dict, first_calls: dict, losses: dict) -> list[dict]:
    """One record for each contestant that ran in a precision."""
    same = {name: values for name, values in seconds.items() if values and name.endswith(HALF) == bool(half)}
    relative = ratios(same, REFERENCE + half)
    return [
        setting
        | {"name": name.removesuffix(HALF), "dtype": "bfloat16" if half else "float32"}
        | {"seconds": statistics.median(values), "examples_per_second": setting["batch"] / statistics.median(values)}
        | {"ratio": relative.get(name), "first_call": first_calls[name], "losses": losses[name]}
        for name, values in same.items()
    ]


def _check_losses(records: list[dict]) -> None:
    reference = {record["dtype"]: record["losses"] for record in records if record["name"] == REFERENCE}
    for record in records:
        theirs = reference.get(record["dtype"])
        if theirs is None:
            continue
        furthest = max(abs(a - b) / abs(b) for a, b in zip(record["losses"], theirs, strict=True))
        allowed = TOLERANCE[record["dtype"]]
        if not furthest <= (max(allowed, OTHER_GELU) if record["name"].startswith("keras-hub") else allowed):
            sys.exit(f"{record['name']} in {record['dtype']} does not learn as PyTorch: {record['losses']}, {theirs}")
    print(f"the losses of the first {COMPARED} steps agree", file=sys.stderr)


def table(report: dict) -> str:
    """The report as a Markdown table; a ratio below 1 is faster than PyTorch at the same precision."""
    lines = [
        "| computed in | | ms per step | examples per second | ratio to PyTorch | first call, s | first losses |",
        "|---|---|---:|---:|---:|---:|---|",
    ]
    for r in report["results"]:
        ratio = "" if r["ratio"] is None else f"{r['ratio']:.2f}"
        losses = " ".join(f"{loss:.4f}" for loss in r["losses"])
        lines.append(
            f"| {r['dtype']} | {r['name']} | {1000 * r['seconds']:.0f} | {r['examples_per_second']:.0f} | {ratio} "
            f"| {r['first_call']:.1f} | {losses} |"
        )
    r = report["results"][0] if report["results"] else {"batch": 0, "length": 0, "dropout": 0}
    size = f"{r['batch']} texts of {r['length']} tokens, dropout {r['dropout']}"
    return "\n".join([*lines, "", f"{size}; {footer(report)}"])


if __name__ == "__main__":
    main()
