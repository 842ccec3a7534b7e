"""Train a summarizer in both frameworks: who meets whom, where and when, from a dialogue that arranges it.

    python -m benchmarks appointments [--steps 1200] [--output FOLDER] [--tldr MODEL] [--frameworks jax tf] [--json]

Rules generate the dialogues: two people greet each other, make small talk and agree on a meeting, often after a first proposal
is declined. A summary has to state the facts and omit the declined proposal. A small T5 starts from the same weights and sees
the same batches in both frameworks, without dropout, so that the loss curves coincide. Its summaries of held-out dialogues are
compared with the dialogue's first three sentences and, with --tldr, with what a causal language model writes after "TL;DR:".

The models with their tokenizer, run records, predictions, scores.json, and plots of scores and loss curves are written to FOLDER.
"""

import argparse
import shutil
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from duonlp.data import Pair, PairBatches, PairCollator
from duonlp.evaluation import lead, tldr
from duonlp.metrics import Rouge, compare
from duonlp.tokenizers import train_tokenizer
from duonlp.training import FitConfig, GenerationScorer
from duonlp.training.log.metrics_file import FILE, STEP, from_line
from duonlp.util import save_picture
from duonlp.util.json_text import to_json

SOURCE, TARGET, VOCABULARY = 160, 32, 1500
"""Tokens of a dialogue and of a summary, and the tokenizer's vocabulary size."""
MODEL: dict[str, Any] = {
    "model_type": "t5", "d_model": 128, "d_kv": 32, "num_heads": 4, "d_ff": 384, "num_layers": 2, "num_decoder_layers": 2,
    "dropout_rate": 0.0, "feed_forward_proj": "gated-gelu", "relative_attention_num_buckets": 32,
}  # fmt: skip
GENERATION = {"num_beams": 4, "max_new_tokens": TARGET}
TRAINING, HELD_OUT = 12_000, 300
"""Numbers of dialogues."""
EARLY = 50
"""Number of first steps in which the losses of the frameworks are compared relatively."""

NAMES = (
    "Ada", "Ben", "Carla", "Dora", "Emil", "Fay", "Gus", "Hana", "Ivan", "Jill", "Kofi", "Lena", "Mira", "Nils",
    "Olga", "Paul", "Rosa", "Sven", "Tess", "Uma", "Vera", "Will", "Yuri", "Zoe", "Amir", "Bela", "Chen",
    "Dina", "Eva", "Finn", "Greta", "Hugo", "Ines", "Jon", "Kaya", "Luis", "Maja", "Noah", "Otto", "Pia",
    "Ravi", "Sara", "Tom", "Ulla", "Viktor", "Wanda", "Yara", "Abel", "Britt", "Cyril",
)  # fmt: skip
ACTIVITIES = (
    "have lunch", "play chess", "go for a walk", "watch a film", "read the contract", "mend the roof",
    "plan the trip", "paint the kitchen", "look at the figures", "rehearse the song", "meet the landlord",
    "taste some wine", "visit the museum", "choose a carpet", "write the report", "test the engine", "ride horses",
    "go swimming", "sort the photos", "bake bread",
)  # fmt: skip
PLACES = (
    "the station", "the park", "the old mill", "the library", "the harbour", "the town hall", "the bakery", "the garden",
    "the office", "the theatre", "the market", "the lake", "the workshop", "the hotel", "the school", "the bridge",
    "the farm", "the castle", "the airport", "the gallery",
)  # fmt: skip
DAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")
HOURS = ("eight", "nine", "ten", "eleven", "noon", "one", "two", "three", "four", "five", "six", "seven")
GREETINGS = ("Hi {b}, how are you?", "Good morning, {b}!", "Hello {b}. It has been a while.", "{b}, is that you?")
ANSWERS = ("I am fine, thank you.", "Not bad, and you?", "Busy as ever.", "Oh, hello {a}!", "I can hardly complain.")
CHATTER = (
    "It rained all night here.", "The trains were late again.", "My cat has caught a cold.", "Have you seen the game?",
    "The new neighbours are noisy.", "I slept badly.", "My phone is nearly empty.", "The coffee was terrible today.",
    "Did you hear the thunder?", "Prices are going up again.", "I lost my umbrella.", "The garden looks lovely now.",
)  # fmt: skip
PROPOSALS = (
    "Shall we {doing} on {day} at {hour}?", "Would you like to {doing} on {day}, say at {hour}?",
    "I wanted to {doing} with you on {day} at {hour}.",
)  # fmt: skip
DECLINES = ("{day} is impossible, I am afraid.", "Not on {day}, please.", "{day} does not suit me.")
WHERE = ("Where should we meet?", "And where?", "Which place do you have in mind?")
MEETING = ("Let us meet at {place}.", "I will wait at {place}.", "Come to {place}.")
GOODBYES = ("See you then.", "Perfect.", "I look forward to it.", "Good, until then!")


def dialogues(count: int, seed: int) -> Iterator[Pair]:
    """Yield random dialogues with their summaries.

    Args:
        count: Number of dialogues.
        seed: Seed that determines them.
    """
    rng = np.random.default_rng(seed)

    def choose(texts: Sequence[str]) -> str:
        return texts[int(rng.integers(len(texts)))]

    for number in range(count):
        a, b = rng.choice(NAMES, 2, replace=False)
        doing, place = choose(ACTIVITIES), choose(PLACES)
        (first, day), (hour, other) = rng.choice(DAYS, 2, replace=False), rng.choice(HOURS, 2, replace=False)
        turns = [choose(GREETINGS).format(b=b), choose(ANSWERS).format(a=a)]
        turns += [choose(CHATTER) for _ in range(rng.integers(0, 3))]
        proposal = choose(PROPOSALS)
        if rng.random() < 0.5:
            turns += [proposal.format(doing=doing, day=first, hour=hour), choose(DECLINES).format(day=first)]
            turns.append(f"What about {day} at {hour}, then?")
        else:
            turns.append(proposal.format(doing=doing, day=day, hour=hour))
        if rng.random() < 0.3:
            turns += [f"Could we make it {other} instead?", "Of course."]
            hour = other
        turns += ["Gladly.", choose(WHERE)] if rng.random() < 0.5 else ["Why not."]
        turns += [choose(MEETING).format(place=place), choose(GOODBYES)]
        text = "\n".join(f"{(a, b)[i % 2]}: {turn}" for i, turn in enumerate(turns))
        yield Pair(text, (f"{a} and {b} will {doing} on {day} at {hour}. They meet at {place}.",), f"dialogue_{number}")


def main(arguments: list[str] | None = None) -> None:
    """Train and evaluate in both frameworks; print a table or JSON."""
    options = _options(arguments)
    folder = Path(options.output)
    folder.mkdir(parents=True, exist_ok=True)
    training, held_out = list(dialogues(TRAINING, seed=0)), list(dialogues(HELD_OUT, seed=1))
    tokenizer = train_tokenizer(
        (text for pair in training[:2000] for text in (pair.document, *pair.summaries)), "bpe", VOCABULARY,
        special_tokens={"bos_token": None, "eos_token": "</s>", "pad_token": "<pad>"}, max_length=SOURCE,
    )  # fmt: skip
    ids = {"pad_token_id": tokenizer.pad_token_id, "eos_token_id": tokenizer.eos_token_id}
    hf = MODEL | ids | {"decoder_start_token_id": tokenizer.pad_token_id, "vocab_size": len(tokenizer)}

    histories: dict[str, list[float]] = {}
    systems = {"lead-3": [lead(pair.document, 3) for pair in held_out]}
    for framework in options.frameworks:
        histories[framework], systems[framework] = _train(
            framework, hf, tokenizer, training, held_out, options.steps, folder
        )
    if options.tldr:
        systems["tldr"] = _tldr(options, held_out)
    comparison = compare(systems, [pair.summaries for pair in held_out], [Rouge()])
    report = {
        "benchmark": "appointments", "dialogues": len(training), "held_out": len(held_out), "steps": options.steps,
        "losses": histories, "comparison": comparison.to_dict(),
    }  # fmt: skip
    if len(histories) == 2:
        first, second = (np.array(history) for history in histories.values())
        # Only early, since later steps amplify differences in rounding.
        report["largest_relative_difference_early"] = float(np.abs(first / second - 1)[:EARLY].max())
        report["largest_difference"] = float(np.abs(first - second).max())
    (folder / "scores.json").write_text(to_json(report, indent=2), encoding="utf-8")
    comparison.plot(folder / "scores.png", "Summaries of held-out dialogues")
    _plot_losses(histories, folder / "curves.png")
    if options.json:
        print(to_json(report, indent=2))
        return
    from rich.console import Console

    Console(width=120).print(comparison.table())
    if "largest_difference" in report:
        print(
            f"losses differ by a relative {report['largest_relative_difference_early']:.1e} at most in the first {EARLY} steps, "
            f"and by {report['largest_difference']:.2f} nats at most in all steps"
        )
    for i in range(3):
        print(f"\n{held_out[i].id}\n  reference: {held_out[i].summaries[0]}")
        for name, texts in systems.items():
            print(f"  {name}: {' '.join(texts[i].split())[:100]}")


def _train(
    framework: str,
    hf: dict[str, Any],
    tokenizer: Any,
    training: list[Pair],
    held_out: list[Pair],
    steps: int,
    folder: Path,
) -> tuple[list[float], list[str]]:
    """Train in one framework; return the loss of every step and the summaries of the held-out dialogues."""
    import importlib

    nlp = importlib.import_module(f"{framework}nlp")
    model = nlp.AutoModelForSeq2SeqLM.from_config(hf, seed=0)
    collator = PairCollator(tokenizer, model.config, SOURCE, TARGET)
    batches = PairBatches(training, collator, 32, seed=0)
    config = FitConfig(
        steps=steps, learning_rate=2e-3, schedule="cosine", warmup_share=0.05, log_every=1, evaluate_every=0, save_every=0
    )  # fmt: skip
    fit: Callable[..., tuple[Any, list[float]]] = _fit_jax if framework == "jax" else _fit_tf
    model, history = fit(model, batches, config, folder / f"run_{framework}")
    model.save_pretrained(folder / framework, tokenizer)
    scorer = GenerationScorer(PairBatches(held_out, collator, 32, shuffle=False), tokenizer, Rouge(), **GENERATION)
    scorer(model)
    lines = [to_json({"id": pair.id, "summary": text}) for pair, text in zip(held_out, scorer.predictions)]
    (folder / f"{framework}.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return history, scorer.predictions


def _fit_jax(model: Any, batches: PairBatches, config: FitConfig, folder: Path) -> tuple[Any, list[float]]:
    """Train with :func:`jaxnlp.training.fit.fit`; return the model and the loss of every step."""
    from jaxnlp.training.fit import fit

    shutil.rmtree(folder, ignore_errors=True)  # fit would resume an earlier run
    result = fit(model, batches, config, folder, log={"console": sys.stderr.isatty()})
    records = map(from_line, (folder / FILE).read_bytes().splitlines())
    return result.model, [record["loss"] for record in records if record.get("kind") == STEP]


def _fit_tf(model: Any, batches: PairBatches, config: FitConfig, folder: Path) -> tuple[Any, list[float]]:
    """Train with Keras' ``fit``; return the model and the loss of every step."""
    import keras

    from tfnlp.training import Schedule, batch_dataset, make_optimizer

    losses: list[float] = []

    class StepLosses(keras.callbacks.Callback):
        """Record the loss of every step; Keras logs the mean of the epoch."""

        def on_train_batch_begin(self, batch, logs=None):
            assert self.model is not None
            self.model.reset_metrics()

        def on_train_batch_end(self, batch, logs=None):
            assert logs is not None
            losses.append(float(logs["loss"]))

    assert config.steps is not None
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
    dataset = batch_dataset(batches, epochs).take(config.steps)
    model.fit(dataset, steps_per_epoch=config.steps, verbose=1 if sys.stderr.isatty() else 0, callbacks=[StepLosses()])
    return model, losses


def _tldr(options: argparse.Namespace, held_out: list[Pair]) -> list[str]:
    import importlib

    nlp = importlib.import_module(f"{options.frameworks[0]}nlp")
    return tldr(nlp.pipeline("text-generation", options.tldr), [pair.document for pair in held_out])


def _plot_losses(histories: Mapping[str, Sequence[float]], path: Path) -> None:
    """Plot the loss curve of each framework, averaged over 20 steps."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.subplots()
    for (framework, losses), style in zip(histories.items(), ("-", "--")):
        smooth = np.convolve(losses, np.ones(20) / 20, "valid")
        axes.plot(np.arange(20, len(losses) + 1), smooth, style, label=f"{framework}nlp")
    axes.set(xlabel="step", ylabel="loss (nats per token)", yscale="log", title="Training loss")
    axes.legend()
    save_picture(figure, path)


def _options(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks appointments", description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=1200, help="training steps (default %(default)s)")
    parser.add_argument("--output", default="appointments", help="output folder (default %(default)s)")
    parser.add_argument("--tldr", default="", metavar="MODEL", help="causal language model of the TL;DR baseline")
    parser.add_argument(
        "--frameworks", nargs="+", default=["jax", "tf"], choices=["jax", "tf"], help="frameworks (default: both)"
    )
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    main()
