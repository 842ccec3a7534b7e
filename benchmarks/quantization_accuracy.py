"""Compare the accuracy of a classifier, or the perplexity of a causal language model, before and after each kind of quantization.

    python -m benchmarks quantization_accuracy MODEL DATA [--split validation] [--calibration-split train] [--json]
    python -m benchmarks quantization_accuracy MODEL FILE --perplexity

DATA is labeled texts as `duonlp finetune` reads them, FILE a text. Both engines run; the column "same" is the share of equal
predictions between them.
"""

import argparse
import math
from collections.abc import Iterator
from typing import Any

import numpy as np

from duonlp.util.json_text import to_json

SCHEMES: dict[str, dict[str, Any]] = {
    "float32": {},
    "int8": {"scheme": "int8"},
    "int8-static, min-max": {"scheme": "int8-static"},
    "int8-static, percentile": {"scheme": "int8-static", "calibration": "percentile"},
    "int8-static, mse": {"scheme": "int8-static", "calibration": "mse"},
    "int8-weights": {"scheme": "int8-weights"},
    "int8-weights, GPTQ": {"scheme": "int8-weights", "rounding": "gptq"},
    "int4": {"scheme": "int4"},
    "int4, GPTQ": {"scheme": "int4", "rounding": "gptq"},
    "int4, AWQ": {"scheme": "int4", "rounding": "awq"},
}
CALIBRATION_TEXTS, LENGTH, BLOCK = 512, 32, 128


def main(arguments: list[str] | None = None) -> None:
    """Run the comparison and print a table or JSON."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks quantization_accuracy", description=__doc__.splitlines()[0]
    )
    parser.add_argument("model", nargs="?", help="a classifier, or a causal language model: a folder or a Hub id")
    parser.add_argument("data", nargs="?", help="labeled texts, or a text file")
    parser.add_argument("--split", default="validation", help="texts to predict (default %(default)s)")
    parser.add_argument("--calibration-split", default="train", help="texts to calibrate with (default %(default)s)")
    parser.add_argument("--perplexity", action="store_true", help="measure a language model on a text file")
    parser.add_argument(
        "--blocks", type=int, default=64, help="blocks of 128 tokens for the perplexity (default %(default)s)"
    )
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    options = parser.parse_args(arguments)
    if options.model is None or options.data is None:
        print("quantization_accuracy needs MODEL and DATA; skipped")
        return
    rows = list(_perplexities(options) if options.perplexity else _accuracies(options))
    print(to_json({"benchmark": "quantization_accuracy", "results": rows}, indent=2) if options.json else table(rows))


def _models(auto: str, location: str, batches: Any) -> Iterator[tuple[str, list[Any]]]:
    """Yield each scheme's name and its model in both engines, which are quantized from one float model each."""
    import jaxnlp
    import tfnlp

    engines = tfnlp, jaxnlp
    plain = [getattr(engine, auto).from_pretrained(location) for engine in engines]
    for name, settings in SCHEMES.items():
        pairs = zip(engines, plain, strict=True)
        yield (
            name,
            plain if not settings else [engine.quantize(model, batches=batches, **settings) for engine, model in pairs],
        )


def _accuracies(options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    import jaxnlp
    import tfnlp
    from duonlp.checkpoints import open_checkpoint
    from duonlp.data import read_labelled_texts
    from duonlp.quantization import calibration_batches

    checkpoint = open_checkpoint(options.model)
    tokenizer, labels = checkpoint.tokenizer(), checkpoint.transformer_config().labels
    texts = read_labelled_texts(options.data, options.split)
    seen = read_labelled_texts(options.data, options.calibration_split).texts
    step = max(1, len(seen) // CALIBRATION_TEXTS)
    batches = calibration_batches(tokenizer, seen[::step][:CALIBRATION_TEXTS], max_length=LENGTH)
    inputs = calibration_batches(tokenizer, texts.texts, batch_size=100, max_length=LENGTH)
    ids = [labels.index(texts.label_names[label]) for label in texts.labels]
    for name, models in _models("AutoModelForSequenceClassification", options.model, batches):
        runs = [engine.compiled(model) for engine, model in zip((tfnlp, jaxnlp), models, strict=True)]
        tf, jax = (np.concatenate([np.asarray(run(**batch)["logits"]).argmax(-1) for batch in inputs]) for run in runs)
        yield {"scheme": name, "tfnlp": float(np.mean(tf == ids)), "jaxnlp": float(np.mean(jax == ids)),
               "same": float(np.mean(tf == jax))}  # fmt: skip


def _perplexities(options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    import jaxnlp
    import tfnlp
    from duonlp.checkpoints import open_checkpoint
    from duonlp.util.tokenization import tokenize

    with open(options.data, encoding="utf-8") as file:
        ids = np.array(tokenize(open_checkpoint(options.model).tokenizer(), file.read())["input_ids"], np.int32)
    blocks = ids[: len(ids) // BLOCK * BLOCK].reshape(-1, BLOCK)
    held_out, calibration = blocks[: options.blocks], blocks[options.blocks :][:64]
    batches = [{"input_ids": rows} for rows in np.array_split(calibration, 8)]
    for name, models in _models("AutoModelForCausalLM", options.model, batches):
        row: dict[str, Any] = {"scheme": name}
        for engine, model in zip((tfnlp, jaxnlp), models, strict=True):
            run, losses = engine.compiled(model), []
            for rows in np.array_split(held_out, len(held_out) // 8):
                logits = np.asarray(run(input_ids=rows)["logits"], np.float64)[:, :-1]
                shifted = logits - logits.max(-1, keepdims=True)
                target = np.take_along_axis(shifted, rows[:, 1:, None].astype(int), -1)[..., 0]
                losses.append(np.log(np.exp(shifted).sum(-1)) - target)
            row[engine.__name__] = math.exp(np.mean(np.concatenate(losses)))
        yield row


def table(rows: list[dict[str, Any]]) -> str:
    """Return the rows as a Markdown table."""
    names = list(rows[0])
    lines = ["| " + " | ".join(names) + " |", "|---" + "|---:" * (len(names) - 1) + "|"]
    lines += ["| " + " | ".join(v if isinstance(v, str) else f"{v:.4f}" for v in row.values()) + " |" for row in rows]
    return "\n".join(lines)


if __name__ == "__main__":
    main()
