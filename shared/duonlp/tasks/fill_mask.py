"""Fill mask: the likeliest tokens in place of each mask token."""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from duonlp.errors import InputError
from duonlp.tasks.base import Example, Task, TruncationOptions, check_int, describe, softmax
from duonlp.tasks.feature_extraction import merge_tokenizer_options


@dataclass(frozen=True)
class FillMaskOptions(TruncationOptions):
    """top_k: how many tokens for each mask. targets: consider only these words (a text or several)."""

    top_k: int = 5
    targets: str | Sequence[str] | None = None

    def __post_init__(self):
        super().__post_init__()
        check_int("top_k", self.top_k, minimum=1)
        if self.targets is None:
            return
        targets = (self.targets,) if isinstance(self.targets, str) else self.targets
        if not isinstance(targets, Sequence) or not targets or not all(isinstance(t, str) and t for t in targets):
            raise InputError(
                f"targets is {describe(self.targets)}; it must be a word, a list of at least one word, or None"
            )
        object.__setattr__(self, "targets", tuple(targets))


class FillMaskTask(Task):
    """Text -> [{"score", "token", "token_str", "sequence"}, ...], as Transformers' FillMaskPipeline.

    A text with several masks gives one such list for each; their scores are independent of each other.
    """

    name = "fill-mask"
    head = "masked-lm"
    Options = FillMaskOptions

    def __init__(self, tokenizer, config, folder=None):
        super().__init__(tokenizer, config, folder)
        if tokenizer.mask_token_id is None:
            raise InputError("fill-mask needs a tokenizer with a mask token, and this one has none; take a masked LM")
        self._targets: dict[tuple[str, ...], np.ndarray] = {}

    def rewrite_options(self, changes):
        return merge_tokenizer_options(self.name, changes, "tokenizer_kwargs")

    def check_options(self, options):
        if options.targets is not None:
            self.target_ids(options.targets)

    def arrange(self, inputs, keywords):
        arranged = super().arrange(inputs, keywords)
        if arranged.shape == "list" and len(arranged.items) == 1:  # as in Transformers: a list of one is that one
            arranged.shape = "one"
        return arranged

    def output_width(self):
        return self.config.embedding.vocab_size

    def encode(self, items, options, first=0):
        rows = self.rows(self.tokenize(self.texts(items, first), options=options), first)
        examples = []
        for i, row in enumerate(rows):
            masks = np.flatnonzero(row["input_ids"] == self.tokenizer.mask_token_id)
            if not len(masks):
                raise InputError(
                    f"fill-mask: input {first + i}, {describe(items[i])}, has no mask token; "
                    f"write {self.tokenizer.mask_token} where a word is wanted"
                )
            examples.append([Example(row, state=masks)])
        return examples

    def reduce(self, examples, outputs, options):
        logits = outputs["logits"]  # [B, T, V], far too large to keep
        return [{"logits": logits[row, example.state]} for row, example in enumerate(examples)]

    def decode(self, item, examples, outputs, options):
        example, probabilities = examples[0], softmax(outputs[0]["logits"])  # [masks, V]
        targets = None if options.targets is None else self.target_ids(options.targets)
        if targets is not None:
            probabilities = probabilities[:, targets]
        top_k = min(options.top_k, probabilities.shape[1])
        best = np.argpartition(-probabilities, top_k - 1, axis=1)[:, :top_k]
        best = np.take_along_axis(best, np.argsort(-np.take_along_axis(probabilities, best, 1), 1, kind="stable"), 1)
        single = len(example.state) == 1
        answers = []
        for place, row, scores in zip(example.state, best, probabilities, strict=True):
            tokens = row if targets is None else targets[row]
            answers.append(
                [
                    self.proposition(example, place, int(token), float(scores[i]), single)
                    for token, i in zip(tokens, row, strict=True)
                ]
            )
        return answers[0] if single else answers

    def proposition(self, example: Example, place: int, token: int, score: float, single: bool) -> dict:
        """One token in the place of a mask, and the text it makes."""
        ids = example.inputs["input_ids"].copy()
        ids[place] = token
        ids = ids[ids != self.tokenizer.pad_token_id]
        # Skipping the special tokens reads better, but would drop the other masks.
        sequence = self.tokenizer.decode(ids, skip_special_tokens=single)
        return {"score": score, "token": token, "token_str": self.tokenizer.decode([token]), "sequence": sequence}

    def target_ids(self, targets: tuple[str, ...]) -> np.ndarray:
        """The token of each target word; a word of several tokens stands for its first, with a warning."""
        if targets in self._targets:
            return self._targets[targets]
        vocabulary = self.tokenizer.get_vocab()
        ids = []
        for target in targets:
            token = vocabulary.get(target)
            if token is None:
                pieces = self.tokenizer(target, add_special_tokens=False)["input_ids"]
                if not pieces:
                    warnings.warn(f"target {target!r} is no token and has none, so it is left out", stacklevel=2)
                    continue
                token = pieces[0]
                first = self.tokenizer.convert_ids_to_tokens(token)
                warnings.warn(f"target {target!r} is not in the vocabulary; its first token {first!r} stands for it",
                              stacklevel=2)  # fmt: skip
            ids.append(token)
        if not ids:
            raise InputError(f"none of the targets {', '.join(map(repr, targets))} has a token; give other words")
        self._targets = {targets: np.array(sorted(set(ids)))}  # the last ones asked for, so that warnings come once
        return self._targets[targets]
