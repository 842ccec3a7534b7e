"""Learning to summarise, in both frameworks: the first sentence of a docstring from the code of its function.

    python -m benchmarks docstrings [--steps 1500] [--output FOLDER] [--tldr MODEL] [--frameworks jax tf] [--json]

The functions are those of the running Python's standard library that have a docstring; files are held out by the hash of
their names, so that no held-out function is a neighbour of one that was learnt. A small T5 begins in both frameworks with the
same weights and sees the same batches, without dropout: two frameworks, one curve. Its summaries of held-out functions are
compared with the first three lines of the code and, with --tldr, with what a causal language model says after "TL;DR:".

FOLDER gets the tokenizer, both models, their records, predictions, the table as scores.json, and pictures of scores and curves.
"""

import argparse
import ast
import json
import shutil
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from shared.baselines import lead, tldr
from shared.data.corpus import STANDARD_LIBRARY_SKIPS, is_held_out, standard_library_folder, text_files
from shared.data.pair_collator import PairCollator
from shared.data.pairs import PairBatches
from shared.data.summaries import Pair
from shared.metrics.compare import compare
from shared.metrics.rouge import Rouge
from shared.pictures import save_picture
from shared.tokenizers.train import train_tokenizer
from shared.training.fit_config import FitConfig
from shared.training.generated import GenerationScorer
from shared.training.metrics_file import FILE, STEP, from_line

SOURCE, TARGET, VOCABULARY = 128, 24, 4096
MODEL = {
    "model_type": "t5", "d_model": 192, "d_kv": 32, "num_heads": 6, "d_ff": 512, "num_layers": 2, "num_decoder_layers": 2,
    "dropout_rate": 0.0, "feed_forward_proj": "gated-gelu", "relative_attention_num_buckets": 32,
}  # fmt: skip
WRITING = {"num_beams": 4, "max_new_tokens": TARGET, "no_repeat_ngram_size": 3}
EVALUATED = 400  # held-out functions


def functions() -> Iterator[Pair]:
    """Every function of the standard library with a docstring: its code without it, and its first sentence."""
    root = standard_library_folder()
    for file in text_files(root, skip=STANDARD_LIBRARY_SKIPS):
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                tree = ast.parse(file.read_text(encoding="utf-8"))
        except (SyntaxError, UnicodeDecodeError):
            continue
        for node in ast.walk(tree):
            if not isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)) or not ast.get_docstring(node):
                continue
            sentence = " ".join(lead(ast.get_docstring(node).split("\n\n")[0].replace("\n", " "), 1).split())
            node.body = node.body[1:] or [ast.Pass()]
            code = ast.unparse(node)
            if 3 <= len(sentence.split()) <= 20:
                yield Pair(code, (sentence,), f"{file.relative_to(root)}:{node.name}")


def main(arguments: list[str] | None = None) -> None:
    """Prepare, train, write, compare; print the table, or JSON."""
    options = _options(arguments)
    folder = Path(options.output)
    folder.mkdir(parents=True, exist_ok=True)
    pairs = list(functions())
    held_out = [pair for pair in pairs if is_held_out(pair.id.partition(":")[0], 0.1)][:EVALUATED]
    training = [pair for pair in pairs if not is_held_out(pair.id.partition(":")[0], 0.1)]
    tokenizer = train_tokenizer(
        (text for pair in training for text in (pair.document, *pair.summaries)), "bpe", VOCABULARY,
        special_tokens={"bos_token": None, "eos_token": "</s>", "pad_token": "<pad>"}, max_length=SOURCE,
    )  # fmt: skip
    ids = {"pad_token_id": tokenizer.pad_token_id, "eos_token_id": tokenizer.eos_token_id}
    hf = MODEL | ids | {"decoder_start_token_id": tokenizer.pad_token_id, "vocab_size": len(tokenizer)}

    histories, systems = {}, {"lead-3": [lead(pair.document, 3) for pair in held_out]}
    for framework in options.frameworks:
        histories[framework], systems[framework] = _learn(
            framework, hf, tokenizer, training, held_out, options.steps, folder
        )
    if options.tldr:
        systems["tldr"] = _tldr(options, held_out)
    comparison = compare(systems, [pair.summaries for pair in held_out], [Rouge()])
    report = {
        "benchmark": "docstrings", "functions": len(training), "held_out": len(held_out), "steps": options.steps,
        "losses": histories, "comparison": comparison.to_dict(),
    }  # fmt: skip
    if len(histories) == 2:
        first, second = (np.array(history) for history in histories.values())
        report["largest_difference_of_losses"] = float(np.abs(first / second - 1).max())
    (folder / "scores.json").write_text(json.dumps(report, indent=2), encoding="utf-8")
    comparison.plot(folder / "scores.png", "Docstrings of held-out functions")
    _plot(histories, folder / "curves.png")
    if options.json:
        print(json.dumps(report, indent=2))
        return
    from rich.console import Console

    Console(width=120).print(comparison.table())
    if "largest_difference_of_losses" in report:
        print(f"largest difference of the losses of a step: {report['largest_difference_of_losses']:.2%}")
    for i in range(3):
        print(f"\n{held_out[i].id}\n  written by people: {held_out[i].summaries[0]}")
        for name, texts in systems.items():
            print(f"  {name}: {' '.join(texts[i].split())[:100]}")


def _learn(framework, hf, tokenizer, training, held_out, steps, folder) -> tuple[list[float], list[str]]:
    """Train from the same weights on the same batches; the losses of all steps, and texts for the held-out functions."""
    import importlib

    nlp = importlib.import_module(f"{framework}nlp")
    model = nlp.AutoModelForSeq2SeqLM.from_config(hf, seed=0)
    collator = PairCollator(tokenizer, model.config, SOURCE, TARGET)
    batches = PairBatches(training, collator, 32, seed=0)
    config = FitConfig(
        steps=steps, learning_rate=3e-3, schedule="cosine", warmup_share=0.05, log_every=1, evaluate_every=0, save_every=0
    )  # fmt: skip
    learn = _fit_jax if framework == "jax" else _fit_tf
    model, history = learn(model, batches, config, folder / f"run_{framework}")
    model.save_pretrained(folder / framework, tokenizer)
    scorer = GenerationScorer(PairBatches(held_out, collator, 32, shuffle=False), tokenizer, Rouge(), **WRITING)
    scorer(model)
    lines = [json.dumps({"id": pair.id, "summary": text}) for pair, text in zip(held_out, scorer.predictions)]
    (folder / f"{framework}.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return history, scorer.predictions


def _fit_jax(model, batches, config, folder):
    from jaxnlp.training.fit import fit

    shutil.rmtree(folder, ignore_errors=True)  # a run of an earlier measurement would be gone on with
    result = fit(model, batches, config, folder, log={"console": sys.stderr.isatty()})
    records = map(from_line, (folder / FILE).read_bytes().splitlines())
    return result.model, [record["loss"] for record in records if record.get("kind") == STEP]


def _fit_tf(model, batches, config, folder):
    import keras

    from tfnlp.training import Schedule, make_optimizer, pair_dataset

    losses = []

    class EachLoss(keras.callbacks.Callback):
        """Keras logs means over an epoch."""

        def on_train_batch_begin(self, batch, logs=None):
            self.model.reset_metrics()

        def on_train_batch_end(self, batch, logs=None):
            losses.append(float(logs["loss"]))

    rate = Schedule(
        config.steps, config.learning_rate, schedule=config.schedule, warmup_share=config.warmup_share,
        final_share=config.final_share,
    )  # fmt: skip
    model.compile(
        make_optimizer(
            config.optimizer, rate, model, weight_decay=config.weight_decay, beta1=config.beta1, beta2=config.beta2,
            clip_norm=config.clip_norm,
        )
    )  # fmt: skip
    epochs = -(-config.steps // len(batches))
    dataset = pair_dataset(batches, epochs).take(config.steps)
    model.fit(dataset, steps_per_epoch=config.steps, verbose=1 if sys.stderr.isatty() else 0, callbacks=[EachLoss()])
    return model, losses


def _tldr(options, held_out) -> list[str]:
    import importlib

    nlp = importlib.import_module(f"{options.frameworks[0]}nlp")
    return tldr(nlp.pipeline("text-generation", options.tldr), [pair.document for pair in held_out])


def _plot(histories, path) -> None:
    """The loss of every step, smoothed over 20, one line a framework."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.subplots()
    for (framework, losses), style in zip(histories.items(), ("-", "--")):
        smooth = np.convolve(losses, np.ones(20) / 20, "valid")
        axes.plot(np.arange(20, len(losses) + 1), smooth, style, label=f"{framework}nlp")
    axes.set(xlabel="step", ylabel="loss, nats a token", title="Two frameworks, one curve")
    axes.legend()
    save_picture(figure, path)


def _options(arguments):
    parser = argparse.ArgumentParser(prog="python -m benchmarks docstrings", description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=1500)
    parser.add_argument("--output", default="docstrings")
    parser.add_argument("--tldr", default="", help="a causal language model, for the TL;DR baseline")
    parser.add_argument("--frameworks", nargs="+", default=["jax", "tf"], choices=["jax", "tf"])
    parser.add_argument("--json", action="store_true")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    main()
