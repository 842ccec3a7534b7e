"""What every augmenter does, the random numbers of a copy, and a count of the copies that are not new."""

import hashlib
import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from duonlp.data.rows.order import check_seed
from duonlp.errors import InputError
from duonlp.tasks.base import check_int, describe
from duonlp.util.reading import is_unicode


class Augmenter(Protocol):
    """Makes changed copies of texts.

    A copy depends on the augmenter's settings, the seed, the text and the number of the copy, and on nothing else: not on the
    other texts of a call, nor on their order. With a model, two batches may round a probability differently, which changes a
    copy only if two candidates are as good as equal.

    A text that cannot be changed is its own copy; see :func:`count_unchanged`.
    """

    def augment(self, texts: Sequence[str], per_text: int = 1, seed: int = 0) -> list[list[str]]:
        """Return `per_text` copies of each text.

        Args:
            texts: The texts.
            per_text: Number of copies of each; the first ones are the same for any number.
            seed: Seed in [0, 2**64).

        Raises:
            InputError: An argument is out of range, or a text is not a str of valid Unicode.
        """
        ...

    def settings(self) -> dict[str, Any]:
        """Return everything else that a copy depends on, JSON-compatible, the contents of models included.

        Raises:
            InputError: A model was passed loaded, so that nothing identifies it.
        """
        ...


class Draws:
    """Random numbers of one copy, the same on every platform.

    Args:
        seed: The seed.
        text: The text.
        copy: Number of the copy.
        use: What the numbers are for.
    """

    def __init__(self, seed: int, text: str, copy: int, use: str):
        digest = hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=16, person=b"duonlp augment")
        digest.update(f"\0{seed}\0{copy}\0{use}".encode())
        self._random = random.Random(int.from_bytes(digest.digest(), "little"))

    def uniform(self) -> float:
        """Return a number in [0, 1)."""
        return self._random.random()  # the one method whose numbers Python keeps the same in all versions

    def below(self, count: int) -> int:
        """Return an integer from 0 to `count` - 1."""
        return int(self.uniform() * count)

    def order(self, count: int) -> list[int]:
        """Return the integers from 0 to `count` - 1 in random order."""
        keys = [self.uniform() for _ in range(count)]
        return sorted(range(count), key=keys.__getitem__)


def check_request(texts: Sequence[str], per_text: int, seed: int) -> list[str]:
    """Return the texts of a call of `augment` as a list.

    Raises:
        InputError: An argument is out of range, or a text is not a str of valid Unicode.
    """
    if isinstance(texts, (str, bytes)):
        raise InputError(f"texts is {describe(texts)}; give a list of texts")
    texts = list(texts)
    for number, text in enumerate(texts):
        if not isinstance(text, str) or not is_unicode(text):
            raise InputError(f"text {number} is {describe(text)}; give a text (str) of valid Unicode")
    check_int("per_text", per_text, minimum=1)
    check_seed(seed)
    return texts


def check_share(name: str, value: Any) -> None:
    """Raise InputError unless a value is a number above 0 and at most 1."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value <= 1:
        raise InputError(f"{name} is {describe(value)}; expected a number above 0 and at most 1")


@dataclass(frozen=True)
class Unchanged:
    """How many copies are not new.

    Attributes:
        texts: Number of texts.
        copies: Number of copies.
        unchanged: Number of copies that are the text itself.
        repeated: Number of further copies that are equal to an earlier one of the same text.
    """

    texts: int
    copies: int
    unchanged: int
    repeated: int

    @property
    def new(self) -> int:
        """Number of the other copies."""
        return self.copies - self.unchanged - self.repeated


def count_unchanged(texts: Sequence[str], copies: Sequence[Sequence[str]]) -> Unchanged:
    """Return how many copies are the text itself, or repeat an earlier copy.

    Args:
        texts: The texts.
        copies: What :meth:`Augmenter.augment` returned for them.
    """
    unchanged = sum(copy == text for text, of_text in zip(texts, copies, strict=True) for copy in of_text)
    new = sum(len({*of_text} - {text}) for text, of_text in zip(texts, copies, strict=True))
    total = sum(map(len, copies))
    return Unchanged(len(texts), total, unchanged, total - unchanged - new)


def derived_seed(seed: int, *parts: int | str) -> int:
    """Return another seed for each combination of parts, such as the number of an epoch."""
    digest = hashlib.blake2b("\0".join(map(str, (seed, *parts))).encode(), digest_size=8, person=b"duonlp seed")
    return int.from_bytes(digest.digest(), "little")
