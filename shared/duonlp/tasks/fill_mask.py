"""Fill mask: the most likely tokens for each mask token."""

import os
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from duonlp.config import TransformerConfig
from duonlp.errors import InputError
from duonlp.tasks.base import Example, ParsedInputs, check_int, describe, softmax
from duonlp.tasks.feature_extraction import merge_tokenizer_options
from duonlp.tasks.text import TextTask, TruncationOptions
from duonlp.typing import Tokenizer
from duonlp.util.tokenization import tokenize


@dataclass(frozen=True)
class FillMaskOptions(TruncationOptions):
    """Options of fill-mask.

    Attributes:
        top_k: Number of tokens per mask.
        targets: Only consider this word, or these words.
    """

    top_k: int = 5
    targets: str | Sequence[str] | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        check_int("top_k", self.top_k, minimum=1)
        if self.targets is None:
            return
        targets = (self.targets,) if isinstance(self.targets, str) else self.targets
        if not isinstance(targets, Sequence) or not targets or not all(isinstance(t, str) and t for t in targets):
            raise InputError(f"targets is {describe(self.targets)}; expected a word, a nonempty list of words, or None")
        object.__setattr__(self, "targets", tuple(targets))


class FillMaskTask(TextTask[FillMaskOptions]):
    """Text -> [{"score", "token", "token_str", "sequence"}, ...], like Transformers' FillMaskPipeline.

    For a text with several masks, the result is one such list per mask; the masks are scored independently.

    Raises:
        InputError: the tokenizer has no mask token.
    """

    name = "fill-mask"
    head = "masked-lm"
    Options = FillMaskOptions

    def __init__(
        self, tokenizer: Tokenizer, config: TransformerConfig, folder: str | os.PathLike[str] | None = None
    ) -> None:
        super().__init__(tokenizer, config, folder)
        if tokenizer.mask_token_id is None:
            raise InputError(
                "fill-mask needs a tokenizer with a mask token; use a masked language model and its tokenizer"
            )
        self._targets: tuple[tuple[str, ...], np.ndarray] = (), np.zeros(0, np.int64)

    def rewrite_options(self, changes: dict[str, Any]) -> dict[str, Any]:
        return merge_tokenizer_options(self.name, changes, "tokenizer_kwargs")

    def check_options(self, options: FillMaskOptions) -> None:
        if options.targets is not None:
            self.target_ids(tuple(options.targets))

    def parse_inputs(self, inputs: Any, keywords: dict[str, Any]) -> ParsedInputs:
        parsed = super().parse_inputs(inputs, keywords)
        if parsed.kind == "list" and len(parsed.items) == 1:  # as in Transformers
            parsed.kind = "one"
        return parsed

    def output_width(self) -> int:
        return self.config.embedding.vocab_size

    def encode(self, items: Sequence[Any], options: FillMaskOptions, first: int = 0) -> list[list[Example]]:
        rows = self.rows(self.tokenize(self.texts(items, first), options=options), first)
        examples = []
        for i, row in enumerate(rows):
            masks = np.flatnonzero(row["input_ids"] == self.tokenizer.mask_token_id)
            if not len(masks):
                raise InputError(
                    f"fill-mask: input {first + i}, {describe(items[i])}, has no mask token; "
                    f"write {self.tokenizer.mask_token} for each word to predict"
                )
            examples.append([Example(row, state=masks)])
        return examples

    def reduce(
        self, examples: Sequence[Example], outputs: Mapping[str, np.ndarray], options: FillMaskOptions
    ) -> list[dict[str, Any]]:
        logits = outputs["logits"]  # [B, T, V], too large to keep
        return [{"logits": logits[row, example.state]} for row, example in enumerate(examples)]

    def decode(
        self, item: Any, examples: Sequence[Example], outputs: Sequence[dict[str, Any]], options: FillMaskOptions
    ) -> list[Any]:
        example, probabilities = examples[0], softmax(outputs[0]["logits"])  # [masks, V]
        targets = None if options.targets is None else self.target_ids(tuple(options.targets))
        if targets is not None:
            probabilities = probabilities[:, targets]
        top_k = min(options.top_k, probabilities.shape[1])
        best = np.argpartition(-probabilities, top_k - 1, axis=1)[:, :top_k]
        best = np.take_along_axis(best, np.argsort(-np.take_along_axis(probabilities, best, 1), 1, kind="stable"), 1)
        single = len(example.state) == 1
        answers = []
        for position, row, scores in zip(example.state, best, probabilities, strict=True):
            tokens = row if targets is None else targets[row]
            answers.append(
                [
                    self.prediction(example, position, int(token), float(scores[i]), single)
                    for token, i in zip(tokens, row, strict=True)
                ]
            )
        return answers[0] if single else answers

    def prediction(self, example: Example, position: int, token: int, score: float, single: bool) -> dict[str, Any]:
        """Return the result for one token: its score, and the text with the token at the mask's position."""
        ids = example.inputs["input_ids"].copy()
        ids[position] = token
        ids = ids[ids != self.tokenizer.pad_token_id]
        # Skipping special tokens would also drop the other masks.
        sequence = self.tokenizer.decode(ids, skip_special_tokens=single)
        return {"score": score, "token": token, "token_str": self.tokenizer.decode([token]), "sequence": sequence}

    def target_ids(self, targets: tuple[str, ...]) -> np.ndarray:
        """Return the sorted token ids of the target words, int [n].

        A word of several tokens is replaced by its first token, with a warning.

        Raises:
            InputError: no target has a token.
        """
        cached, ids = self._targets
        if targets == cached:
            return ids
        vocabulary = self.tokenizer.get_vocab()
        found: list[int] = []
        for target in targets:
            token = vocabulary.get(target)
            if token is None:
                pieces = tokenize(self.tokenizer, target, add_special_tokens=False)["input_ids"]
                if not pieces:
                    warnings.warn(f"target {target!r} has no tokens; it is ignored", stacklevel=2)
                    continue
                token = pieces[0]
                first = self.tokenizer.convert_ids_to_tokens(token)
                warnings.warn(
                    f"target {target!r} is not in the vocabulary; using its first token, {first!r}", stacklevel=2
                )
            found.append(token)
        if not found:
            raise InputError(f"none of the targets {', '.join(map(repr, targets))} has a token; pass other words")
        ids = np.array(sorted(set(found)))
        self._targets = targets, ids  # cached, so that a target warns only once; replaced as a whole, for other threads
        return ids
