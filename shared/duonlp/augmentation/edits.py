"""Easy data augmentation: random insertion, swap and deletion of words, and replacement by synonyms."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from duonlp.augmentation.augmenter import Draws, check_request, check_share
from duonlp.augmentation.synonyms import Synonyms, protection_settings
from duonlp.augmentation.words import Protection
from duonlp.errors import InputError
from duonlp.tasks.base import describe

OPERATIONS = ("replace", "insert", "swap", "delete")


@dataclass(frozen=True, eq=False)
class RandomEdits:
    """EDA (Wei and Zou 2019, https://arxiv.org/abs/1901.11196): each copy has one kind of edit.

    With l words that may be changed, n = max(1, alpha * l), and the kinds are

    - "replace": replace n words by synonyms,
    - "insert": n times, insert a synonym of a random word after a random word; where no word has synonyms, or there are none,
      a random word of the text,
    - "swap": n times, swap two random words,
    - "delete": delete each word with probability alpha, at least one of them, but never all.

    Consecutive copies of a text have different kinds, the first a random one. An edit that cannot change the text (a swap in a
    text of one word) is replaced by the next kind that can.

    Attributes:
        alpha: Share of the words to edit; the paper recommends 0.05 for little data and 0.1 for more.
        operations: The kinds of edits; None for all, "replace" only with `synonyms`.
        synonyms: Where synonyms come from.
        protect: Parts of a text that are never changed.

    Raises:
        InputError: A setting is out of range or unknown.
    """

    alpha: float = 0.1
    operations: Sequence[str] | None = None
    synonyms: Synonyms | None = None
    protect: Protection = field(default_factory=Protection)

    def __post_init__(self) -> None:
        check_share("alpha", self.alpha)
        if self.operations is None:
            object.__setattr__(self, "operations", OPERATIONS[self.synonyms is None :])
        names = self.operations
        if isinstance(names, str) or not names or len({*names} & {*OPERATIONS}) < len(names):
            raise InputError(f"operations is {describe(names)}; give different ones of {', '.join(OPERATIONS)}")
        if self.synonyms is not None and not isinstance(self.synonyms, Synonyms):
            raise InputError(f"synonyms is {describe(self.synonyms)}; pass duonlp.augmentation.Synonyms(...)")
        if "replace" in names and self.synonyms is None:
            raise InputError('operations has "replace", which needs synonyms; pass synonyms=Synonyms(...)')

    def augment(self, texts: Sequence[str], per_text: int = 1, seed: int = 0) -> list[list[str]]:
        """Return `per_text` copies of each text; see :class:`Augmenter`."""
        texts = check_request(texts, per_text, seed)
        return [[self._copy(text, seed, copy) for copy in range(per_text)] for text in texts]

    def settings(self) -> dict[str, Any]:
        """Return everything that a copy depends on beside its text and seed."""
        synonyms = None if self.synonyms is None else self.synonyms.settings()
        return {
            "augmenter": "edits", "alpha": self.alpha, "operations": list(self.operations or ()), "synonyms": synonyms,
            "protect": protection_settings(self.protect),
        }  # fmt: skip

    def _copy(self, text: str, seed: int, copy: int) -> str:
        pieces, operations = self.protect.pieces(text), list(self.operations or ())
        first = Draws(seed, text, 0, "operations").below(len(operations)) + copy
        draws = Draws(seed, text, copy, "edits")
        count = max(1, int(self.alpha * (len(pieces) // 2)))
        for number in range(len(operations) if len(pieces) > 1 else 0):
            edited = list(pieces)
            getattr(self, f"_{operations[(first + number) % len(operations)]}")(edited, count, draws)
            if (result := "".join(edited)) != text:
                return result
        return text

    def _replace(self, pieces: list[str], count: int, draws: Draws) -> None:
        if self.synonyms is not None:
            self.synonyms.replace(pieces, count, draws)

    def _insert(self, pieces: list[str], count: int, draws: Draws) -> None:
        words = pieces[1::2]
        for _ in range(count):
            word = self._word_to_insert(words, draws)
            place = 1 + 2 * draws.below(len(pieces) // 2)
            pieces[place + 1 : place + 1] = [" ", word]

    def _word_to_insert(self, words: list[str], draws: Draws) -> str:
        if self.synonyms is not None:
            for number in draws.order(len(words)):
                if words[number].casefold() in self.synonyms.stop_words:
                    continue
                if synonyms := self.synonyms.of(words[number]):
                    return synonyms[draws.below(len(synonyms))]
        return words[draws.below(len(words))]

    def _swap(self, pieces: list[str], count: int, draws: Draws) -> None:
        for _ in range(count):
            first = 1 + 2 * draws.below(len(pieces) // 2)
            others = [place for place in range(1, len(pieces), 2) if pieces[place] != pieces[first]]
            if others:
                second = others[draws.below(len(others))]
                pieces[first], pieces[second] = pieces[second], pieces[first]

    def _delete(self, pieces: list[str], count: int, draws: Draws) -> None:
        total = len(pieces) // 2
        deleted = [number for number in range(total) if draws.uniform() < self.alpha] or [draws.below(total)]
        if len(deleted) == total:
            deleted.remove(draws.below(total))
        for number in reversed(deleted):
            before, after = pieces[2 * number], pieces[2 * number + 2]
            if after[:1] == " " and (not before or before[-1].isspace()):
                after = after[1:]  # one of the two spaces around the word
            pieces[2 * number : 2 * number + 3] = [before + after]
