"""Classification by a causal language model that reads labeled examples in its prompt; nothing is trained.

Brown et al. 2020, https://arxiv.org/abs/2005.14165, section 2, calibrated as in Zhao et al. 2021, https://arxiv.org/abs/2102.09690.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, Literal, Self

import numpy as np

from duonlp.checkpoints.checkpoint import open_checkpoint
from duonlp.data.labelled.texts import LabelledTexts
from duonlp.errors import CheckpointError, InputError
from duonlp.fewshot.classifier import ClassifierFiles, FewShotData, check_settings, write_classifier
from duonlp.fewshot.prompt_classifier import (
    CALIBRATION_TEXTS,
    CALIBRATIONS,
    COMBINATIONS,
    CONTENT_FREE,
    MODEL,
    checked_engine,
    load_language_model,
    probabilities,
)
from duonlp.generation.tree import label_groups, tree_batch, tree_scores
from duonlp.prompts.patterns import Verbalizer
from duonlp.schema import choice, integer, list_of, text
from duonlp.tasks.base import check_choice, check_int, check_text, softmax
from duonlp.typing import Engine, Tokenizer
from duonlp.util.tokenization import tokenize

NO_LABEL = "none"
"""What an example without labels has in place of them."""

SETTINGS = {
    "examples": text(1 << 24), "template": text(10_000), "words": list_of(text(1000), 2), "combine": choice(*COMBINATIONS),
    "max_length": integer(1, 1 << 20), "batch_size": integer(1, 1 << 20),
}  # fmt: skip


@dataclass(frozen=True)
class InContextClassifier:
    """A classifier that compares the probabilities of the labels after a prompt with examples.

    Attributes:
        package: tfnlp or jaxnlp.
        model: Causal language model.
        tokenizer: Its tokenizer.
        examples: The beginning of every prompt: instruction and examples.
        template: What follows, with ``{text}``, up to ``{label}``.
        label_names: Names of the labels.
        words: What stands for each label.
        multi_label: Whether a text may have several labels, or none.
        combine: Whether the log probabilities of a label's tokens are averaged or added up.
        prior: Score of each label without a text, which is subtracted, float32 [C].
        max_length: Maximum number of tokens of a text.
        batch_size: Prompts per batch.
    """

    package: Engine
    model: Any
    tokenizer: Tokenizer
    examples: str
    template: str
    label_names: tuple[str, ...]
    words: tuple[str, ...]
    multi_label: bool
    combine: Literal["mean", "sum"]
    prior: np.ndarray
    max_length: int
    batch_size: int

    def scores(self, texts: Sequence[str]) -> np.ndarray:
        """Return the probability of each label, float32 [n, C]; without `multi_label`, rows add up to 1.

        Raises:
            InputError: An item is not a text.
        """
        texts = [check_text(item, f"text {i}") for i, item in enumerate(texts)]
        if not texts:
            return np.zeros((0, len(self.label_names)), np.float32)
        return probabilities(self.raw_scores(texts) - self.prior, self.multi_label)

    def raw_scores(self, texts: Sequence[str]) -> np.ndarray:
        """Return the log probability of each label after the prompt of each text, before calibration, float32 [n, C].

        The labels of a text are read in one forward pass, or in a few if they are many, so that the prompt is read once.
        """
        run, tokens = self.package.compiled(self.model), label_tokens(self.tokenizer, self.template, self.words)
        limit = self.model.config.max_length
        groups = label_groups(self.model.config, tokens, limit // 8)
        room = limit - max(sum(len(tokens[label]) - 1 for label in group) for group in groups)
        prompts = self.prompts(texts, room)
        scores = np.zeros((len(texts), len(tokens)), np.float32)
        order = sorted(range(len(texts)), key=lambda i: len(prompts[i]))
        for group in groups:
            for first in range(0, len(order), self.batch_size):
                rows = order[first : first + self.batch_size]
                words = [tokens[label] for label in group]
                batch, places = tree_batch(self.model.config, [prompts[i] for i in rows], words, self.batch_size)
                logits = np.asarray(run(**batch)["logits"][: len(rows)], np.float32)
                scores[np.ix_(rows, group)] = tree_scores(logits, words, places, self.combine)
        return scores

    def prompts(self, texts: Sequence[str], room: int) -> list[np.ndarray]:
        """Return the token ids of the prompts, int32 [T] each, of at most `room` tokens; the texts are truncated.

        Raises:
            InputError: There is no room for a text.
        """
        before, _, after = self.template.partition("{text}")
        before, after = self.examples + before, after.rstrip()
        texts = truncated(self.tokenizer, texts, self.max_length)
        prompts: list[np.ndarray] = []
        for item in texts:
            while len(ids := prompt_ids(self.tokenizer, before + item + after)) > room and item:
                length = len(tokenize(self.tokenizer, item, add_special_tokens=False, verbose=False)["input_ids"])
                item = truncated(self.tokenizer, [item], max(length - (len(ids) - room), 0))[0]
            if len(ids) > room:
                raise InputError(
                    f"the prompt has {len(ids)} tokens without a text, but the model reads {room} beside the labels; use fewer "
                    "or shorter examples"
                )
            prompts.append(ids)
        return prompts

    def save(self, folder: str | Path) -> None:
        """Write the settings, and the model and its tokenizer into a subfolder, atomically."""
        settings = {
            "examples": self.examples, "template": self.template, "words": list(self.words), "combine": self.combine,
            "max_length": self.max_length, "batch_size": self.batch_size,
        }  # fmt: skip
        files = ClassifierFiles(InContext.name, self.label_names, self.multi_label, settings, {"prior": self.prior})
        write_classifier(files, folder, lambda new: self.model.save_pretrained(new / MODEL, self.tokenizer))

    @classmethod
    def load(cls, files: ClassifierFiles, package: Engine | None) -> Self:
        """Return the classifier of a folder.

        Raises:
            CheckpointError: The folder is damaged.
            InputError: There is no engine.
        """
        package, settings = checked_engine(package), check_settings(files, SETTINGS)
        if len(settings["words"]) != len(files.label_names) or "{text}" not in settings["template"]:
            raise CheckpointError(f"{files.folder}: words, labels and template do not fit together; train again")
        model, tokenizer = load_language_model(package, files.folder / MODEL, "AutoModelForCausalLM")
        return cls(
            package, model, tokenizer, settings["examples"], settings["template"], files.label_names,
            tuple(settings["words"]), files.multi_label, settings["combine"],
            files.array("prior", np.float32, (len(files.label_names),)), settings["max_length"], settings["batch_size"],
        )  # fmt: skip


def prompt_ids(tokenizer: Tokenizer, prompt: str) -> np.ndarray:
    """Return the token ids of a prompt, int32 [T], with the special tokens before it but not those behind it."""
    encoded = tokenize(tokenizer, prompt, return_special_tokens_mask=True, verbose=False)
    ids, special = encoded["input_ids"], encoded["special_tokens_mask"]
    end = len(ids)
    while end and special[end - 1]:
        end -= 1
    return np.asarray(ids[:end], np.int32)


def truncated(tokenizer: Tokenizer, texts: Sequence[str], most: int) -> list[str]:
    """Return the texts without surrounding spaces, and without what follows their first `most` tokens."""
    texts = [item.strip() for item in texts]
    encoded = tokenize(tokenizer, texts, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
    offsets = encoded["offset_mapping"]
    return [
        item if len(spans) <= most else item[: spans[most - 1][1] if most else 0].rstrip()
        for item, spans in zip(texts, offsets, strict=True)
    ]


def label_tokens(tokenizer: Tokenizer, template: str, words: Sequence[str]) -> list[tuple[int, ...]]:
    """Return the tokens of each word behind the template, without its end.

    Raises:
        InputError: The tokenizer is not a fast one; it merges a word with the template; a word has an unknown token; or two words
            have the same tokens.
    """
    if not getattr(tokenizer, "is_fast", False):
        raise InputError(
            f"in-context examples need a fast tokenizer, got {type(tokenizer).__name__}; load one with "
            "transformers.AutoTokenizer.from_pretrained(...)"
        )
    before = template.replace("{text}", "a")
    prompt, tokens = prompt_ids(tokenizer, before.rstrip()).tolist(), []
    space = before[len(before.rstrip()) :]
    for word in words:
        ids = prompt_ids(tokenizer, before.rstrip() + space + word).tolist()
        rest = tuple(ids[len(prompt) :])
        if ids[: len(prompt)] != prompt or not rest:
            raise InputError(
                f"the tokenizer merges {word!r} with the end of the template {template!r}; end it with a colon and a space"
            )
        if (
            tokenizer.unk_token_id is not None
            and tokenizer.unk_token_id in rest
            and tokenizer.unk_token_id not in prompt
        ):
            raise InputError(
                f"the label {word!r} has a token that the tokenizer does not know; give it another word with verbalizer="
            )
        if rest in tokens:
            raise InputError(
                f"the labels {words[tokens.index(rest)]!r} and {word!r} have the same tokens; give one of them another word with "
                "verbalizer="
            )
        tokens.append(rest)
    return tokens


@dataclass(frozen=True)
class InContext:
    """Put labeled examples into the prompt of a causal language model, and choose the label that it finds most likely next.

    With several labels per text, an example's labels are separated by commas, and the score of a label is the sigmoid of its log
    probability less that without a text: above 0.5, the text makes the label more likely.

    Attributes:
        model: Causal language model: a folder in Hugging Face layout, or a Hub id.
        shots: Number of examples, as many of each label as possible, chosen and ordered by seed. All examples share the room that
            the context leaves: the longest are truncated first, to a common length.
        example: Template of an example, with ``{text}`` and, at its end, ``{label}``.
        separator: What follows the instruction and each example.
        instruction: Beginning of the prompt; "" for none.
        verbalizer: Word of each label; None for the labels' names with spaces in place of underscores.
        combine: Whether the log probabilities of a label's tokens are added up ("sum"), as the probability of the label, or
            averaged ("mean").
        calibrate: As in PromptZeroShot: "content-free", "unlabelled" or "none".
        max_length: Maximum number of tokens of each text, that of an example or one to classify.
        batch_size: Prompts per batch.
    """

    model: str
    shots: int = 8
    example: str = "Text: {text}\nLabel: {label}"
    separator: str = "\n\n"
    instruction: str = ""
    verbalizer: Mapping[str, str] | None = None
    combine: Literal["mean", "sum"] = "sum"
    calibrate: Literal["content-free", "unlabelled", "none"] = "content-free"
    max_length: int = 128
    batch_size: int = 4

    name: ClassVar[str] = "in-context"
    needs_engine: ClassVar[bool] = True
    needs_unlabelled: ClassVar[bool] = False
    classifier: ClassVar[type[InContextClassifier]] = InContextClassifier

    def __post_init__(self) -> None:
        counts = [self.example.count(name) for name in ("{text}", "{label}")]
        if counts != [1, 1] or not self.example.endswith("{label}"):
            raise InputError(
                f"the template of examples is {self.example!r}; it must have {{text}} once and end with {{label}}, as "
                f"{InContext.example!r} does"
            )
        check_int("shots", self.shots, minimum=0)
        check_choice("combine", self.combine, COMBINATIONS)
        check_choice("calibrate", self.calibrate, CALIBRATIONS)
        check_int("max_length", self.max_length, minimum=1)
        check_int("batch_size", self.batch_size, minimum=1)

    def fit(
        self, package: Engine | None, data: FewShotData, *, seed: int = 0, console: Any = False
    ) -> InContextClassifier:
        """Choose the examples and compute the prior; the same seed gives the same classifier.

        Args:
            package: tfnlp or jaxnlp.
            data: Labeled texts, which may be fewer than `shots`, and unlabeled ones with calibrate="unlabelled".
            seed: Seed of the choice and the order of the examples.
            console: Unused.

        Raises:
            InputError: There are no labeled texts though `shots` is not 0; or the settings do not suit the labels or the model.
        """
        package = checked_engine(package)
        if self.shots and not len(data.train):
            raise InputError("there are no labeled texts to use as examples; pass some, or set shots=0")
        if self.calibrate == "unlabelled" and not data.unlabelled:
            raise InputError(
                "calibrate is 'unlabelled', but there are no unlabeled texts; pass some, or use calibrate='content-free'"
            )
        verbalizer = Verbalizer.of(data.train.label_names, self.verbalizer)
        if several := next((words for words in verbalizer.words if len(words) > 1), None):
            raise InputError(f"a label has the words {', '.join(several)}; in-context examples need one word per label")
        words = tuple(words[0] for words in verbalizer.words)
        template = self.example.removesuffix("{label}")
        tokens = label_tokens(open_checkpoint(self.model).tokenizer(), template, words)
        model, tokenizer = load_language_model(package, self.model, "AutoModelForCausalLM")
        largest = max(len(word) for word in tokens) + model.config.max_length // 8
        examples = self._examples(tokenizer, data.train, words, model.config.max_length - largest, seed)
        classifier = InContextClassifier(
            package, model, tokenizer, examples, template, data.train.label_names, words, data.train.multi_label, self.combine,
            np.zeros(len(words), np.float32), self.max_length, self.batch_size,
        )  # fmt: skip
        if self.calibrate == "none":
            return classifier
        texts = CONTENT_FREE if self.calibrate == "content-free" else list(data.unlabelled)[:CALIBRATION_TEXTS]
        scores = classifier.raw_scores(texts).astype(np.float64)
        prior = scores.mean(0) if classifier.multi_label else np.log(softmax(scores).mean(0))
        return replace(classifier, prior=prior.astype(np.float32))

    def _examples(self, tokenizer: Tokenizer, train: LabelledTexts, words: Sequence[str], room: int, seed: int) -> str:
        """Return instruction and examples that leave room for a text in `room` tokens.

        Raises:
            InputError: The context has no room for this many examples.
        """
        rows = choose_examples(train.labels, min(self.shots, len(train)), seed)
        start = self.instruction + self.separator if self.instruction else ""
        labels = [", ".join(words[c] for c in _labels_of(train.labels[row])) or NO_LABEL for row in rows]
        fixed = [self.example.replace("{text}", "").replace("{label}", label) + self.separator for label in labels]
        texts = truncated(tokenizer, [str(train.texts[row]) for row in rows], self.max_length)
        query = self.example.replace("{text}", "").replace("{label}", "")
        overhead = len(prompt_ids(tokenizer, start + "".join(fixed) + query))
        lengths = (
            [len(ids) for ids in tokenize(tokenizer, texts, add_special_tokens=False, verbose=False)["input_ids"]]
            if texts
            else []
        )
        # A text to classify is one more that shares the room.
        most = fair_length([*lengths, self.max_length], room - overhead)
        if most < 1:
            raise InputError(
                f"shots is {self.shots}, whose templates and labels have {overhead} tokens of the {room} that the model reads "
                "beside the labels; set fewer shots"
            )
        while True:
            parts = [
                self.example.replace("{label}", label).replace("{text}", item) + self.separator
                for item, label in zip(truncated(tokenizer, texts, most), labels, strict=True)
            ]
            # Joining may add tokens, such as that of a space.
            used = len(prompt_ids(tokenizer, start + "".join(parts) + query))
            if used + min(most, self.max_length) <= room or most == 1:
                return start + "".join(parts)
            most -= 1


def choose_examples(labels: np.ndarray, count: int, seed: int) -> list[int]:
    """Return the indices of examples in which every label is as frequent as possible, in random order.

    Args:
        labels: int [n], or [n, C] with several labels per text.
        count: Number of examples, at most n.
        seed: Seed.
    """
    rng = np.random.default_rng(seed)
    flags = labels > 0.5 if labels.ndim == 2 else labels[:, None] == np.arange(labels.max(initial=0) + 1)
    # The absence of labels counts as one more.
    flags = np.concatenate([flags, ~flags.any(1, keepdims=True)], 1)
    order, chosen = rng.permutation(len(labels)).tolist(), []
    used = np.zeros(flags.shape[1], int)
    while len(chosen) < count:
        available = flags[order].any(0)
        rarest = min(np.flatnonzero(available), key=lambda label: used[label])
        row = next(row for row in order if flags[row, rarest])
        order.remove(row)
        chosen.append(row)
        used += flags[row]
    return [chosen[i] for i in rng.permutation(len(chosen))]


def fair_length(lengths: Sequence[int], room: int) -> int:
    """Return the largest length to which texts can be truncated so that they have at most `room` tokens in all; 0 for none."""
    most = max(lengths, default=0)
    while most > 0 and sum(min(length, most) for length in lengths) > room:
        most -= 1
    return most


def _labels_of(labels: Any) -> list[int]:
    """Return the labels of a text: one, or those whose flag is set."""
    return [int(labels)] if np.ndim(labels) == 0 else np.flatnonzero(labels > 0.5).tolist()
