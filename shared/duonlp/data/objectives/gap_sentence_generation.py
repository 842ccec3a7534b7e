"""PEGASUS' gap sentences: predict the most informative sentences of a text after removing them.

:func:`gap_sentences` splits raw text into a document and a summary; :class:`GapSentences` is the pretraining objective
on blocks of ids.
"""

import re
from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from duonlp.data.objectives import vocabulary
from duonlp.data.objectives.encoder_decoder import EncoderDecoderObjective, concatenate_ids, sentences
from duonlp.data.rows.order import check_seed
from duonlp.errors import InputError
from duonlp.util.sentences import split_sentences

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

MASK = "<mask_1>"
"""Token that replaces a removed sentence in PEGASUS' vocabulary."""

STRATEGIES = ("ind-orig", "seq-orig", "random", "lead")
"""How sentences are selected: by ROUGE independently, by ROUGE sequentially, at random, or from the start."""

_WORD = re.compile(r"[^\W_]+")


def gap_sentences(
    text: str,
    ratio: float | tuple[float, float] = 0.3,
    strategy: str = "ind-orig",
    seed: int = 0,
    *,
    mask_token: str = MASK,
    noise: float = 0.0,
    language: str = "en",
) -> tuple[str, str]:
    """Split a document into a source without its most informative sentences and a target with them.

    From PEGASUS (Zhang et al. 2020, https://arxiv.org/abs/1912.08777, section 3.1).

    Args:
        text: The document.
        ratio: Fraction of sentences to remove, rounded down to at least one sentence; or (low, high), to draw the fraction
            for each document. The paper's best values are 0.15 to 0.45.
        strategy: How sentences are selected. "ind-orig": the highest ROUGE-1 F1 against the rest of the document;
            "seq-orig": one at a time, each maximizing the F1 of the selection against the rest; "random"; or "lead", the
            first ones.
        seed: Seed for ratios, noise and random sentences.
        mask_token: Token that replaces each removed sentence in the source.
        noise: Scores are multiplied by factors drawn uniformly from [1 - noise, 1 + noise]; 0.2 in PEGASUS-large.
        language: Language of the text, for :func:`duonlp.util.split_sentences`.

    Returns:
        The source and the target. The target is the removed sentences in their original order, joined by spaces.

    Raises:
        InputError: An option is out of range, or the text has no sentence.
        MissingExtraError: The sentence splitter is not installed.
    """
    ratio_range = _check_options(ratio, strategy, noise)
    parts = split_sentences(text, language)
    if not parts:
        raise InputError("the text has no sentence; drop empty documents")
    words = [_WORD.findall(part.lower()) for part in parts]
    _, numbers = np.unique([word for part in words for word in part], return_inverse=True)
    owners = np.repeat(np.arange(len(parts)), [len(part) for part in words])
    draws = np.random.Generator(np.random.Philox(key=np.asarray([check_seed(seed), 0], dtype=np.uint64)))
    selected = set(select_sentences(numbers, owners, len(parts), ratio_range, strategy, noise, draws).tolist())
    source = [mask_token if number in selected else part for number, part in enumerate(parts)]
    return " ".join(source), " ".join(part for number, part in enumerate(parts) if number in selected)


class GapSentences(EncoderDecoderObjective):
    """Predict the sentences removed from a text (PEGASUS: Zhang et al. 2020, https://arxiv.org/abs/1912.08777).

    Works like :func:`gap_sentences`, on blocks: sentences end at sentence-ending tokens, documents at special tokens, and
    ROUGE-1 compares token ids. Sentences are removed from every document in the block with at least two sentences, or
    from the block as a whole if it has no such document. Each leaves one <mask_1>; the target is all of them in order.

    A source is at most as long as its block. Targets have `target_share` of the block length; longer ones are truncated.
    """

    name = "gap-sentences"

    def __init__(
        self,
        tokenizer: "PreTrainedTokenizerFast",
        *,
        ratio: float | Sequence[float] = 0.3,
        strategy: str = "ind-orig",
        noise: float = 0.0,
        target_share: float = 0.5,
        sentence_ends: Sequence[str] | None = None,
        decoder_start_token_id: int | None = None,
    ):
        """Read the mask token and the sentence-ending tokens from the tokenizer.

        Args:
            tokenizer: A `transformers` fast tokenizer with <mask_1> or another mask token.
            ratio: Fraction of sentences to remove, as in :func:`gap_sentences`.
            strategy: How sentences are selected, as in :func:`gap_sentences`.
            noise: Relative noise of the scores, as in :func:`gap_sentences`.
            target_share: Target length divided by block length, in (0, 1]; PEGASUS has targets of 256 for blocks of 512.
            sentence_ends: Sentence-ending tokens as spelled in the vocabulary. Defaults to full stops, question marks and
                exclamation marks.
            decoder_start_token_id: First decoder input, equal to the model's. Defaults to the padding token (PEGASUS).

        Raises:
            InputError: An option is out of range, or the tokenizer lacks a token that the objective needs.
        """
        super().__init__(tokenizer, decoder_start_token_id)
        self.ratio, self.strategy, self.noise = _check_options(ratio, strategy, noise), strategy, float(noise)
        if not 0 < target_share <= 1:
            raise InputError(f"target_share is {target_share}; it must be above 0 and at most 1, such as 0.5")
        self.target_share = float(target_share)
        mask = tokenizer.get_vocab().get(MASK, getattr(tokenizer, "mask_token_id", None))
        if mask is None:
            raise InputError(
                f"gap-sentences needs a tokenizer with {MASK} or a mask token, and this one has neither; add it "
                f"(train_tokenizer's extra_special_tokens=[{MASK!r}])"
            )
        self.mask_token_id = int(mask)
        self.sentence_ends = None if sentence_ends is None else tuple(sentence_ends)
        self._ends = vocabulary.sentence_ends(tokenizer, sentence_ends)

    def options(self) -> dict[str, Any]:
        names = ("ratio", "strategy", "noise", "target_share", "sentence_ends")
        return {name: getattr(self, name) for name in names}

    def lengths(self, block_length: int) -> tuple[int, int]:
        return block_length + 1, max(2, round(self.target_share * block_length))

    def row(self, ids: np.ndarray, special: np.ndarray, draws: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        starts, ends, documents = sentences(ids, special, self._ends)
        if not len(starts):
            return ids, ids[:0]
        numbers = np.unique(ids, return_inverse=True)[1]  # [T], dense token numbers
        sizes = np.bincount(documents)  # sentences per document
        groups = [np.flatnonzero(documents == document) for document in np.flatnonzero(sizes > 1)]
        removed = []
        for group in groups or [np.arange(len(starts))]:
            owners = np.repeat(np.arange(len(group)), ends[group] - starts[group])
            tokens = concatenate_ids([numbers[starts[i] : ends[i]] for i in group])
            removed.append(
                group[select_sentences(tokens, owners, len(group), self.ratio, self.strategy, self.noise, draws)]
            )
        removed = np.concatenate(removed)
        first, hidden = np.zeros((2, len(ids)), dtype=bool)
        for start, end in zip(starts[removed].tolist(), ends[removed].tolist()):
            first[start], hidden[start:end] = True, True
        return np.where(first, np.int32(self.mask_token_id), ids)[~hidden | first], ids[hidden]


def select_sentences(
    tokens: np.ndarray,
    owners: np.ndarray,
    count: int,
    ratio: tuple[float, float],
    strategy: str,
    noise: float,
    draws: np.random.Generator,
) -> np.ndarray:
    """Return the numbers of the sentences to remove from a document, int [m] in increasing order.

    Args:
        tokens: int [L], the document's words as numbers from 0.
        owners: int [L], the sentence of each word.
        count: Number of sentences n.
        ratio: (low, high), range of the fraction to remove.
        strategy: One of :data:`STRATEGIES`. Ties go to the earlier sentence.
        noise: Relative noise of the scores.
        draws: Random generator.
    """
    share = ratio[0] if ratio[0] == ratio[1] else draws.uniform(*ratio)
    target_count = min(max(int(count * share), 1), count)
    if strategy == "lead":
        return np.arange(target_count)
    if strategy == "random":
        return np.sort(draws.choice(count, target_count, replace=False))
    size = int(tokens.max(initial=0)) + 1
    counts = np.bincount(owners * size + tokens, minlength=count * size).reshape(count, size)  # [n, V]
    add_noise = partial(_add_noise, noise=noise, draws=draws)
    if strategy == "ind-orig":
        scores = add_noise(rouge1_f1(counts, counts.sum(axis=0) - counts))
        return np.sort(np.argsort(-scores, kind="stable")[:target_count])
    inside, outside = np.zeros(size, dtype=counts.dtype), counts.sum(axis=0)
    selected: list[int] = []
    for _ in range(target_count):
        scores = add_noise(rouge1_f1(inside + counts, outside - counts))
        scores[selected] = -1
        best = int(np.argmax(scores))
        selected.append(best)
        inside, outside = inside + counts[best], outside - counts[best]
    return np.sort(selected)


def rouge1_f1(candidates: np.ndarray, references: np.ndarray) -> np.ndarray:
    """Return the ROUGE-1 F1 of pairs of texts, float [n], from their word counts (Lin 2004).

    Args:
        candidates: int [n, V], word counts.
        references: int [n, V], word counts.
    """
    overlap = np.minimum(candidates, references).sum(axis=1)
    # With precision and recall = overlap / length, 2PR / (P + R) is 2 overlap / (sum of both lengths).
    return 2 * overlap / np.maximum(candidates.sum(axis=1) + references.sum(axis=1), 1)


def _add_noise(scores: np.ndarray, noise: float, draws: np.random.Generator) -> np.ndarray:
    return scores * draws.uniform(1 - noise, 1 + noise, len(scores)) if noise else scores


def _check_options(ratio: float | Sequence[float], strategy: str, noise: float) -> tuple[float, float]:
    """Return the range of the ratio, or raise InputError for an option that is out of range."""
    if isinstance(ratio, Sequence | np.ndarray):
        low, high = ratio if len(ratio) == 2 else (0.0, 0.0)
    else:
        low = high = ratio
    if not 0 < low <= high < 1:
        raise InputError(f"ratio is {ratio}; it must be between 0 and 1 (exclusive), or a range such as (0.15, 0.45)")
    if strategy not in STRATEGIES:
        raise InputError(f"strategy is {strategy!r}; it must be one of {', '.join(STRATEGIES)}")
    if not 0 <= noise < 1:
        raise InputError(f"noise is {noise}; it must be at least 0 and below 1, such as 0.2")
    return float(low), float(high)
