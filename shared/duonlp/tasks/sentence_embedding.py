"""Sentence embedding: one vector per text, pooled and normalized like sentence-transformers.

The checkpoint's settings are read by :mod:`duonlp.tasks.sentence_config`.
"""

import os
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from duonlp.config import TransformerConfig
from duonlp.errors import InputError
from duonlp.tasks.base import Example, check_bool, check_string
from duonlp.tasks.sentence_config import Dense, l2_normalize, read_sentence_config
from duonlp.tasks.text import TextTask, TruncationOptions, text_and_pair
from duonlp.typing import Tokenizer
from duonlp.util.tokenization import tokenize


@dataclass(frozen=True)
class SentenceEmbeddingOptions(TruncationOptions):
    """Options of sentence embedding.

    Attributes:
        truncation: Whether to truncate texts to ``max_length`` (default: the checkpoint's limit).
        normalize: Scale vectors to unit length; None follows the checkpoint.
        prompt_name: Name of one of the checkpoint's prompts.
        prompt: Text to prepend to each input.
    """

    truncation: bool | str | None = True
    normalize: bool | None = None
    prompt_name: str | None = None
    prompt: str | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        check_bool("normalize", self.normalize, optional=True)
        check_string("prompt_name", self.prompt_name, optional=True)
        check_string("prompt", self.prompt, optional=True)


class SentenceEmbeddingTask(TextTask[SentenceEmbeddingOptions]):
    """Text -> float32 [d]; a list of n texts -> float32 [n, d].

    A pair of texts, such as title and passage, is passed as ``{"text": ..., "text_pair": ...}``. With a
    model trained for its own pooled output (``config.pooler_embeds``, DPR), that is the vector, unless there is a modules.json.

    Raises:
        CheckpointError: the checkpoint has an unsupported module or pooling mode.
    """

    name = "sentence-embedding"
    head = "base"
    Options = SentenceEmbeddingOptions
    outputs = ("last_hidden_state",)
    remedy = "shorten it, or leave truncation=True"

    def __init__(
        self, tokenizer: Tokenizer, config: TransformerConfig, folder: str | os.PathLike[str] | None = None
    ) -> None:
        super().__init__(tokenizer, config, folder)
        self.sentence = read_sentence_config(self.folder)
        self.pooled = config.pooler_embeds and not self.sentence.from_files
        if self.pooled:
            self.outputs = ("pooler_output",)
        elif not self.sentence.from_files:
            warnings.warn(
                f"{self.folder or 'the checkpoint'} has no modules.json; using mean pooling",
                stacklevel=2,
            )

    @property
    def similarity(self) -> str:
        """Similarity for which the vectors were trained: "cosine", "dot", "euclidean" or "manhattan"."""
        return "dot" if self.pooled else self.sentence.similarity

    @property
    def size(self) -> int:
        """Length of a vector."""
        if self.pooled:
            return self.config.pooled_size
        sizes = [step.kernel.shape[1] for step in self.sentence.steps if isinstance(step, Dense)]
        return sizes[-1] if sizes else self.config.hidden_size * len(self.sentence.pooling)

    @property
    def accepted_inputs(self) -> str:
        return 'a text, a pair {"text": ..., "text_pair": ...}, or a list or an iterator of those'

    def limit(self) -> int | None:
        if self.sentence.max_length is None:
            return super().limit()
        # The sentence-transformers setting takes precedence over the tokenizer's.
        return min(self.config.max_length, self.sentence.max_length)

    def check_changes(self, options: SentenceEmbeddingOptions, changes: Mapping[str, Any], of_call: bool) -> None:
        super().check_changes(options, changes, of_call)
        if changes.get("prompt_name") is not None and options.prompt is not None:
            raise InputError(
                f"prompt_name={options.prompt_name!r} has no effect with prompt={options.prompt!r}; pass one of them"
            )

    def check_options(self, options: SentenceEmbeddingOptions) -> None:
        self.prompt(options)

    def prompt(self, options: SentenceEmbeddingOptions) -> str:
        """Return the text to prepend to inputs.

        Raises:
            InputError: ``prompt_name`` is not one of the checkpoint's prompts.
        """
        if options.prompt is not None:
            return options.prompt
        prompts = self.sentence.prompts or {}
        name = options.prompt_name or self.sentence.default_prompt
        if name is None:
            return ""
        if name not in prompts:
            raise InputError(
                f"prompt_name is {name!r}, but the checkpoint's prompts are "
                f"{', '.join(map(repr, prompts)) or 'none'}; use one of them, or pass prompt="
            )
        return prompts[name]

    def encode(self, items: Sequence[Any], options: SentenceEmbeddingOptions, first: int = 0) -> list[list[Example]]:
        prompt = self.prompt(options)
        fold = str.lower if self.sentence.lower_case else str
        pairs = [text_and_pair(item, f"{self.name}: input {first + i}") for i, item in enumerate(items)]
        skipped = 0
        if prompt and not self.sentence.include_prompt and not self.pooled:
            # Do not pool the prompt's tokens; a trailing special token is not one of them.
            ids = tokenize(self.tokenizer, prompt, verbose=False)["input_ids"]
            skipped = len(ids) - (bool(ids) and ids[-1] in self.tokenizer.all_special_ids)
        rows: list[list[Example]] = [[]] * len(items)
        for paired in (False, True):
            numbers = [i for i, (_, pair) in enumerate(pairs) if (pair is not None) == paired]
            columns = [[fold(prompt + pairs[i][0]) for i in numbers], [fold(pairs[i][1] or "") for i in numbers]]
            encoded = self.tokenize(*columns[: 1 + paired], options=options) if numbers else {}
            for i, row in zip(numbers, self.rows(encoded, items=[first + i for i in numbers]), strict=True):
                rows[i] = [Example(row, state=skipped)]
        return rows

    def reduce(
        self, examples: Sequence[Example], outputs: Mapping[str, np.ndarray], options: SentenceEmbeddingOptions
    ) -> list[dict[str, Any]]:
        if self.pooled:
            vectors = np.asarray(outputs["pooler_output"], np.float32)[: len(examples)]
            return [{"embedding": vector} for vector in (l2_normalize(vectors) if options.normalize else vectors)]
        hidden = np.asarray(outputs["last_hidden_state"], np.float32)[: len(examples)]  # [B, T, H]
        mask = np.zeros(hidden.shape[:2], np.float32)
        for row, example in enumerate(examples):
            mask[row, example.state : example.length] = 1
        vectors = pool(hidden, mask, self.sentence.pooling)
        for step in self.sentence.steps:
            if isinstance(step, Dense) or options.normalize is not False:
                vectors = step(vectors)
        if options.normalize and l2_normalize not in self.sentence.steps[-1:]:
            vectors = l2_normalize(vectors)
        return [{"embedding": vector} for vector in vectors]

    def decode(
        self,
        item: Any,
        examples: Sequence[Example],
        outputs: Sequence[dict[str, Any]],
        options: SentenceEmbeddingOptions,
    ) -> np.ndarray:
        return outputs[0]["embedding"]

    def gather(self, results: list[Any], options: SentenceEmbeddingOptions) -> np.ndarray:
        if not results:
            return np.zeros((0, self.size), np.float32)
        return np.stack(results)


def pool(hidden: np.ndarray, mask: np.ndarray, modes: tuple[str, ...]) -> np.ndarray:
    """Pool token vectors to one vector per text, concatenating the vectors of all modes.

    Args:
        hidden: float32 [batch, tokens, hidden], padded on the right.
        mask: float32 [batch, tokens], 1 for tokens to pool.
        modes: Values of :data:`duonlp.tasks.sentence_config.POOLINGS`.

    Returns:
        float32 [batch, hidden * len(modes)].
    """
    parts = []
    tokens = np.arange(hidden.shape[1], dtype=np.float32)
    for mode in modes:
        if mode == "cls":
            part = hidden[np.arange(len(hidden)), mask.argmax(axis=1)]  # first unmasked token
        elif mode == "lasttoken":
            part = hidden[np.arange(len(hidden)), (mask * (tokens + 1)).argmax(axis=1)]
        elif mode == "max":
            part = np.where(mask[..., None] == 0, np.float32(-np.inf), hidden).max(axis=1)
        else:
            weights = mask * (tokens + 1) if mode == "weightedmean" else mask  # [B, T]
            total = np.maximum(weights.sum(axis=1, keepdims=True), 1e-9)
            divisor = np.sqrt(total) if mode == "mean_sqrt_len_tokens" else total
            part = np.einsum("bt,bth->bh", weights, hidden) / divisor
        parts.append(part)
    return np.concatenate(parts, axis=1).astype(np.float32)
