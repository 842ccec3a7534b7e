"""Text without its most telling sentences, for an encoder-decoder to say them: PEGASUS' gap sentences.

On text, :func:`gap_sentences` makes a document and a summary of it; on blocks of ids, :class:`GapSentences` joins the
objectives of pretraining.
"""

import re
from collections.abc import Sequence
from functools import partial

import numpy as np

from duonlp.data.objectives import vocabulary
from duonlp.data.objectives.encoder_decoder import EncoderDecoderObjective, joined, sentences
from duonlp.data.rows.order import check_seed
from duonlp.errors import InputError
from duonlp.util.sentences import split_sentences

MASK = "<mask_1>"
"""What stands for a sentence in PEGASUS' vocabulary."""

STRATEGIES = ("ind-orig", "seq-orig", "random", "lead")
"""By ROUGE against the rest of the document, each sentence by itself or one after the other; any; the first."""

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
    """Returns a document without its most telling sentences, and those sentences (PEGASUS: Zhang et al. 2020,
    https://arxiv.org/abs/1912.08777, section 3.1).

    Args:
        text: a document.
        ratio: the share of its sentences to take out, rounded down but at least one; or (least, most), between which it is
            drawn for each document. The paper's best are 0.15 to 0.45.
        strategy: which: "ind-orig", those with the highest ROUGE-1 F1 against all other sentences; "seq-orig", one after
            the other, each the one with which those taken out have the highest F1 against those that stay; "random"; or
            "lead", the first.
        seed: of what is drawn: ratios, noise, random sentences.
        mask_token: what stands for each of them in the source.
        noise: scores are multiplied by numbers drawn evenly from 1 - noise to 1 + noise; 0.2 in PEGASUS-large.
        language: of the text (duonlp.util.split_sentences).

    Returns:
        The source, and the target: the sentences that were taken out, in their order, with spaces between.

    Raises:
        InputError: an option is out of range, or the text has no sentence.
        MissingExtraError: the splitter of sentences is not installed.
    """
    ratio = _check(ratio, strategy, noise)
    parts = split_sentences(text, language)
    if not parts:
        raise InputError("the text has no sentence; leave empty documents out")
    words = [_WORD.findall(part.lower()) for part in parts]
    _, numbers = np.unique([word for part in words for word in part], return_inverse=True)
    owners = np.repeat(np.arange(len(parts)), [len(part) for part in words])
    draws = np.random.Generator(np.random.Philox(key=np.asarray([check_seed(seed), 0], dtype=np.uint64)))
    chosen = set(chosen_sentences(numbers, owners, len(parts), ratio, strategy, noise, draws).tolist())
    source = [mask_token if number in chosen else part for number, part in enumerate(parts)]
    return " ".join(source), " ".join(part for number, part in enumerate(parts) if number in chosen)


class GapSentences(EncoderDecoderObjective):
    """Say the sentences that were taken out of a text (PEGASUS: Zhang et al. 2020, https://arxiv.org/abs/1912.08777).

    As :func:`gap_sentences`, on blocks: sentences end with the tokens that end sentences, documents with special tokens,
    and ROUGE-1 is of token ids. Of each document in a block with two sentences or more some are taken out; where there is no such
    document, of the block as a whole. Each leaves one <mask_1>; the target is all of them in their order.

    A source is at most as long as its block. Targets have `target_share` of a block's length, and longer ones are cut.
    """

    name = "gap-sentences"

    def __init__(
        self,
        tokenizer,
        *,
        ratio: float | Sequence[float] = 0.3,
        strategy: str = "ind-orig",
        noise: float = 0.0,
        target_share: float = 0.5,
        sentence_ends: Sequence[str] | None = None,
        decoder_start_token_id: int | None = None,
    ):
        """Finds the mask token and the tokens that end sentences.

        Args:
            tokenizer: a `transformers` fast tokenizer with <mask_1> or another mask token.
            ratio, strategy, noise: as in :func:`gap_sentences`.
            target_share: tokens of a target for one of the block, in (0, 1]; PEGASUS has targets of 256 for blocks of 512.
            sentence_ends: tokens that end sentences, as the vocabulary spells them; by default full stops, question marks
                and exclamation marks.
            decoder_start_token_id: what the decoder's inputs begin with, the model's; by default padding (PEGASUS).

        Raises:
            InputError: an option is out of range, or a token that is needed is not there.
        """
        super().__init__(tokenizer, decoder_start_token_id)
        self.ratio, self.strategy, self.noise = _check(ratio, strategy, noise), strategy, float(noise)
        if not 0 < target_share <= 1:
            raise InputError(f"target_share is {target_share}; it must be a share above 0 and at most 1, such as 0.5")
        self.target_share = float(target_share)
        mask = tokenizer.get_vocab().get(MASK, getattr(tokenizer, "mask_token_id", None))
        if mask is None:
            raise InputError(
                f"gap-sentences needs a tokenizer with {MASK} or a mask token; this one has neither: add it "
                f"(train_tokenizer's extra_special_tokens=[{MASK!r}])"
            )
        self.mask_token_id = int(mask)
        self.sentence_ends = None if sentence_ends is None else tuple(sentence_ends)
        self._ends = vocabulary.sentence_ends(tokenizer, sentence_ends)

    def options(self) -> dict:
        names = ("ratio", "strategy", "noise", "target_share", "sentence_ends")
        return {name: getattr(self, name) for name in names}

    def lengths(self, block_length: int) -> tuple[int, int]:
        return block_length + 1, max(2, round(self.target_share * block_length))

    def row(self, ids, special, draws):
        starts, ends, documents = sentences(ids, special, self._ends)
        if not len(starts):
            return ids, ids[:0]
        numbers = np.unique(ids, return_inverse=True)[1]
        sizes = np.bincount(documents)
        groups = [np.flatnonzero(documents == document) for document in np.flatnonzero(sizes > 1)]
        chosen = []
        for group in groups or [np.arange(len(starts))]:
            owners = np.repeat(np.arange(len(group)), ends[group] - starts[group])
            tokens = joined([numbers[starts[i] : ends[i]] for i in group])
            chosen.append(
                group[chosen_sentences(tokens, owners, len(group), self.ratio, self.strategy, self.noise, draws)]
            )
        taken = np.concatenate(chosen)
        first, hidden = np.zeros((2, len(ids)), dtype=bool)
        for start, end in zip(starts[taken].tolist(), ends[taken].tolist()):
            first[start], hidden[start:end] = True, True
        return np.where(first, np.int32(self.mask_token_id), ids)[~hidden | first], ids[hidden]


def chosen_sentences(
    tokens: np.ndarray,
    owners: np.ndarray,
    count: int,
    ratio: tuple[float, float],
    strategy: str,
    noise: float,
    draws: np.random.Generator,
) -> np.ndarray:
    """Returns which sentences of a document are taken out, in order, int [m].

    Args:
        tokens: int [L], the document's words as numbers from 0 on.
        owners: int [L], the sentence of each.
        count: n, of sentences.
        ratio: (least, most), the shares between which one is drawn.
        strategy: of :data:`STRATEGIES`. Of equal scores the earlier sentence is taken.
        noise: of the scores.
        draws: random numbers.
    """
    share = ratio[0] if ratio[0] == ratio[1] else draws.uniform(*ratio)
    wanted = min(max(int(count * share), 1), count)
    if strategy == "lead":
        return np.arange(wanted)
    if strategy == "random":
        return np.sort(draws.choice(count, wanted, replace=False))
    size = int(tokens.max(initial=0)) + 1
    counts = np.bincount(owners * size + tokens, minlength=count * size).reshape(count, size)
    noisy = partial(_noisy, noise=noise, draws=draws)
    if strategy == "ind-orig":
        scores = noisy(rouge1_f1(counts, counts.sum(axis=0) - counts))
        return np.sort(np.argsort(-scores, kind="stable")[:wanted])
    inside, left = np.zeros(size, dtype=counts.dtype), counts.sum(axis=0)
    chosen: list[int] = []
    for _ in range(wanted):
        scores = noisy(rouge1_f1(inside + counts, left - counts))
        scores[chosen] = -1
        best = int(np.argmax(scores))
        chosen.append(best)
        inside, left = inside + counts[best], left - counts[best]
    return np.sort(chosen)


def rouge1_f1(candidates: np.ndarray, references: np.ndarray) -> np.ndarray:
    """ROUGE-1 F1 of pairs of texts, float [n], from how often each word is in each (Lin 2004).

    Args:
        candidates, references: int [n, V].
    """
    overlap = np.minimum(candidates, references).sum(axis=1)
    # 2PR / (P + R), with P and R the overlap over either length, is twice the overlap over both.
    return 2 * overlap / np.maximum(candidates.sum(axis=1) + references.sum(axis=1), 1)


def _noisy(scores: np.ndarray, noise: float, draws: np.random.Generator) -> np.ndarray:
    return scores * draws.uniform(1 - noise, 1 + noise, len(scores)) if noise else scores


def _check(ratio, strategy: str, noise: float) -> tuple[float, float]:
    least, most = (ratio, ratio) if np.isscalar(ratio) else ratio if len(ratio) == 2 else (0, 0)
    if not 0 < least <= most < 1:
        raise InputError(f"ratio is {ratio}; it must be a share between 0 and 1, or two of them, such as (0.15, 0.45)")
    if strategy not in STRATEGIES:
        raise InputError(f"strategy is {strategy!r}; it must be one of {', '.join(STRATEGIES)}")
    if not 0 <= noise < 1:
        raise InputError(f"noise is {noise}; it must be a share from 0 to 1, such as 0.2")
    return float(least), float(most)
