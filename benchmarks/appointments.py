"""Learning to summarise, in both frameworks: who meets whom, where and when, from a dialogue about it.

    python -m benchmarks appointments [--steps 1200] [--output FOLDER] [--tldr MODEL] [--frameworks jax tf] [--json]

The dialogues are made by rules: people greet each other, talk about the weather, and somewhere among that agree on a meeting,
often after a first proposal has been declined. A summary has to find the facts and leave out the proposal that fell through. A
small T5 begins in both frameworks with the same weights and sees the same batches, without dropout: two frameworks, one curve.
Its summaries of other dialogues are compared with their first three sentences and, with --tldr, with what a causal language
model says after "TL;DR:".

FOLDER gets the tokenizer, both models, their records, predictions, the table as scores.json, and pictures of scores and curves.
"""

import argparse
import json
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from duonlp.data import Pair, PairBatches, PairCollator
from duonlp.evaluation import lead, tldr
from duonlp.metrics import Rouge, compare
from duonlp.tokenizers import train_tokenizer
from duonlp.training import FitConfig, GenerationScorer
from duonlp.training.log.metrics_file import FILE, STEP, from_line
from duonlp.util import save_picture

SOURCE, TARGET, VOCABULARY = 160, 32, 1500
MODEL = {
    "model_type": "t5", "d_model": 128, "d_kv": 32, "num_heads": 4, "d_ff": 384, "num_layers": 2, "num_decoder_layers": 2,
    "dropout_rate": 0.0, "feed_forward_proj": "gated-gelu", "relative_attention_num_buckets": 32,
}  # fmt: skip
WRITING = {"num_beams": 4, "max_new_tokens": TARGET}
TRAINING, EVALUATED = 12_000, 300  # dialogues
EARLY = 50  # steps

NAMES = (
    "Ada", "Ben", "Carla", "Dora", "Emil", "Fay", "Gus", "Hana", "Ivan", "Jill", "Kofi", "Lena", "Mira", "Nils",
    "Olga", "Paul", "Rosa", "Sven", "Tess", "Uma", "Vera", "Will", "Yuri", "Zoe", "Amir", "Bela", "Chen",
    "Dina", "Eva", "Finn", "Greta", "Hugo", "Ines", "Jon", "Kaya", "Luis", "Maja", "Noah", "Otto", "Pia",
    "Ravi", "Sara", "Tom", "Ulla", "Viktor", "Wanda", "Yara", "Abel", "Britt", "Cyril",
)  # fmt: skip
DOINGS = (
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
    """So many dialogues and their summaries."""
    rng = np.random.default_rng(seed)

    def one_of(texts):
        return texts[rng.integers(len(texts))]

    for number in range(count):
        a, b = rng.choice(NAMES, 2, replace=False)
        doing, place = one_of(DOINGS), one_of(PLACES)
        (first, day), (hour, other) = rng.choice(DAYS, 2, replace=False), rng.choice(HOURS, 2, replace=False)
        turns = [one_of(GREETINGS).format(b=b), one_of(ANSWERS).format(a=a)]
        turns += [one_of(CHATTER) for _ in range(rng.integers(0, 3))]
        proposal = one_of(PROPOSALS)
        if rng.random() < 0.5:
            turns += [proposal.format(doing=doing, day=first, hour=hour), one_of(DECLINES).format(day=first)]
            turns.append(f"What about {day} at {hour}, then?")
        else:
            turns.append(proposal.format(doing=doing, day=day, hour=hour))
        if rng.random() < 0.3:
            turns += [f"Could we make it {other} instead?", "Of course."]
            hour = other
        turns += ["Gladly.", one_of(WHERE)] if rng.random() < 0.5 else ["Why not."]
        turns += [one_of(MEETING).format(place=place), one_of(GOODBYES)]
        text = "\n".join(f"{(a, b)[i % 2]}: {turn}" for i, turn in enumerate(turns))
        yield Pair(text, (f"{a} and {b} will {doing} on {day} at {hour}. They meet at {place}.",), f"dialogue_{number}")


def main(arguments: list[str] | None = None) -> None:
    """Prepare, train, write, compare; print the table, or JSON."""
    options = _options(arguments)
    folder = Path(options.output)
    folder.mkdir(parents=True, exist_ok=True)
    training, held_out = list(dialogues(TRAINING, seed=0)), list(dialogues(EVALUATED, seed=1))
    tokenizer = train_tokenizer(
        (text for pair in training[:2000] for text in (pair.document, *pair.summaries)), "bpe", VOCABULARY,
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
        "benchmark": "appointments", "dialogues": len(training), "held_out": len(held_out), "steps": options.steps,
        "losses": histories, "comparison": comparison.to_dict(),
    }  # fmt: skip
    if len(histories) == 2:
        first, second = (np.array(history) for history in histories.values())
        # Later, what was rounded otherwise has been multiplied by hundreds of steps.
        report["largest_relative_difference_early"] = float(np.abs(first / second - 1)[:EARLY].max())
        report["largest_difference"] = float(np.abs(first - second).max())
    (folder / "scores.json").write_text(json.dumps(report, indent=2), encoding="utf-8")
    comparison.plot(folder / "scores.png", "Summaries of held-out dialogues")
    _plot(histories, folder / "curves.png")
    if options.json:
        print(json.dumps(report, indent=2))
        return
    from rich.console import Console

    Console(width=120).print(comparison.table())
    if "largest_difference" in report:
        print(
            f"losses differ by at most {report['largest_relative_difference_early']:.1e} of each other in the first {EARLY} "
            f"steps, and by {report['largest_difference']:.2f} nats in all"
        )
    for i in range(3):
        print(f"\n{held_out[i].id}\n  written by people: {held_out[i].summaries[0]}")
        for name, texts in systems.items():
            print(f"  {name}: {' '.join(texts[i].split())[:100]}")


def _learn(framework, hf, tokenizer, training, held_out, steps, folder) -> tuple[list[float], list[str]]:
    """Train from the same weights on the same batches; the losses of all steps, and texts for the held-out dialogues."""
    import importlib

    nlp = importlib.import_module(f"{framework}nlp")
    model = nlp.AutoModelForSeq2SeqLM.from_config(hf, seed=0)
    collator = PairCollator(tokenizer, model.config, SOURCE, TARGET)
    batches = PairBatches(training, collator, 32, seed=0)
    config = FitConfig(
        steps=steps, learning_rate=2e-3, schedule="cosine", warmup_share=0.05, log_every=1, evaluate_every=0, save_every=0
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

    from tfnlp.training import Schedule, batch_dataset, make_optimizer

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
    dataset = batch_dataset(batches, epochs).take(config.steps)
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
    axes.set(xlabel="step", ylabel="loss, nats a token", yscale="log", title="Two frameworks, one curve")
    axes.legend()
    save_picture(figure, path)


def _options(arguments):
    parser = argparse.ArgumentParser(prog="python -m benchmarks appointments", description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=1200)
    parser.add_argument("--output", default="appointments")
    parser.add_argument("--tldr", default="", help="a causal language model, for the TL;DR baseline")
    parser.add_argument("--frameworks", nargs="+", default=["jax", "tf"], choices=["jax", "tf"])
    parser.add_argument("--json", action="store_true")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    main()
