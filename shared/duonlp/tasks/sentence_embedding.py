"""Sentence embedding: one vector a text, pooled and normalised as sentence-transformers would.

What the checkpoint's own files say about it is read by :mod:`duonlp.tasks.sentence_config`.
"""

import warnings
from dataclasses import dataclass

import numpy as np

from duonlp.errors import InputError
from duonlp.tasks.base import Example, Task, TruncationOptions, check_bool, check_string
from duonlp.tasks.sentence_config import Dense, normalized, read_sentence_config


@dataclass(frozen=True)
class SentenceEmbeddingOptions(TruncationOptions):
    """normalize: scale vectors to length 1; None does as the checkpoint says.

    prompt: text put before each input. prompt_name: one of the checkpoint's prompts, by name.
    Texts are cut to `max_length` (the checkpoint's own by default) unless truncation=False.
    """

    truncation: bool | str = True
    normalize: bool | None = None
    prompt_name: str | None = None
    prompt: str | None = None

    def __post_init__(self):
        super().__post_init__()
        check_bool("normalize", self.normalize, optional=True)
        check_string("prompt_name", self.prompt_name, optional=True)
        check_string("prompt", self.prompt, optional=True)


class SentenceEmbeddingTask(Task):
    """Text -> float32 [d]; a list of n texts -> float32 [n, d].

    Raises:
        CheckpointError: for a module or a pooling that is not supported, naming it.
    """

    name = "sentence-embedding"
    head = "base"
    Options = SentenceEmbeddingOptions
    outputs = ("last_hidden_state",)
    remedy = "shorten it, or leave truncation=True"

    def __init__(self, tokenizer, config, folder=None):
        super().__init__(tokenizer, config, folder)
        self.sentence = read_sentence_config(self.folder)
        if not self.sentence.known:
            warnings.warn(
                f"{self.folder or 'the checkpoint'} has no modules.json, so the mean of its token vectors is taken",
                stacklevel=2,
            )

    @property
    def similarity(self) -> str:
        """The similarity its vectors are made for: "cosine", "dot", "euclidean" or "manhattan"."""
        return self.sentence.similarity

    @property
    def size(self) -> int:
        """Length of a vector."""
        sizes = [step.kernel.shape[1] for step in self.sentence.steps if isinstance(step, Dense)]
        return sizes[-1] if sizes else self.config.hidden_size * len(self.sentence.pooling)

    def limit(self):
        if self.sentence.max_length is None:
            return super().limit()
        limits = [n for n in (self.config.max_length, self.sentence.max_length) if n is not None]
        return min(limits)  # what the checkpoint says stands above what its tokenizer says

    def check_options(self, options):
        self.prompt(options)

    def prompt(self, options: SentenceEmbeddingOptions) -> str:
        """The text to put before inputs."""
        if options.prompt is not None:
            return options.prompt
        prompts = self.sentence.prompts or {}
        name = options.prompt_name or self.sentence.default_prompt
        if name is None:
            return ""
        if name not in prompts:
            raise InputError(
                f"prompt_name is {name!r} and the checkpoint's prompts are "
                f"{', '.join(map(repr, prompts)) or 'none'}; name one of them, or pass prompt="
            )
        return prompts[name]

    def encode(self, items, options, first=0):
        prompt = self.prompt(options)
        texts = [prompt + text for text in self.texts(items, first)]
        if self.sentence.lower_case:
            texts = [text.lower() for text in texts]
        skipped = 0
        if prompt and not self.sentence.include_prompt:
            # The prompt's tokens are not pooled; a final special token does not belong to them.
            ids = self.tokenizer(prompt, verbose=False)["input_ids"]
            skipped = len(ids) - (bool(ids) and ids[-1] in self.tokenizer.all_special_ids)
        rows = self.rows(self.tokenize(texts, options=options), first)
        return [[Example(row, state=skipped)] for row in rows]

    def reduce(self, examples, outputs, options):
        hidden = np.asarray(outputs["last_hidden_state"], np.float32)[: len(examples)]  # [B, T, H]
        mask = np.zeros(hidden.shape[:2], np.float32)
        for row, example in enumerate(examples):
            mask[row, example.state : example.length] = 1
        vectors = pool(hidden, mask, self.sentence.pooling)
        for step in self.sentence.steps:
            if isinstance(step, Dense) or options.normalize is not False:
                vectors = step(vectors)
        if options.normalize and normalized not in self.sentence.steps[-1:]:
            vectors = normalized(vectors)
        return [{"embedding": vector} for vector in vectors]

    def decode(self, item, examples, outputs, options):
        return outputs[0]["embedding"]

    def gather(self, results, options):
        if not results:
            return np.zeros((0, self.size), np.float32)
        return np.stack(results)


def pool(hidden: np.ndarray, mask: np.ndarray, modes: tuple[str, ...]) -> np.ndarray:
    """Token vectors to one vector a text: those of each mode, side by side.

    Args:
        hidden: float32 [batch, tokens, hidden], padded on the right.
        mask: float32 [batch, tokens], 1 on tokens that count.
        modes: values of :data:`duonlp.tasks.sentence_config.POOLINGS`.

    Returns:
        float32 [batch, hidden * len(modes)].
    """
    parts = []
    tokens = np.arange(hidden.shape[1], dtype=np.float32)
    for mode in modes:
        if mode == "cls":
            part = hidden[np.arange(len(hidden)), mask.argmax(axis=1)]  # the first token that counts
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
