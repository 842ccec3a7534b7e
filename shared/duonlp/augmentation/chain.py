"""Apply several augmenters one after another."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from duonlp.augmentation.augmenter import Augmenter, check_request, derived_seed
from duonlp.errors import InputError
from duonlp.tasks.base import describe


@dataclass(frozen=True, eq=False)
class Chain:
    """Changes the copies of the first augmenter with the second one, and so on.

    Attributes:
        augmenters: The augmenters, in order.

    Raises:
        InputError: There are none.
    """

    augmenters: Sequence[Augmenter]

    def __post_init__(self) -> None:
        is_sequence = isinstance(self.augmenters, (list, tuple))
        if not is_sequence or not self.augmenters or not all(hasattr(a, "augment") for a in self.augmenters):
            raise InputError(f"augmenters is {describe(self.augmenters)}; give a nonempty list of augmenters")

    def augment(self, texts: Sequence[str], per_text: int = 1, seed: int = 0) -> list[list[str]]:
        """Return `per_text` copies of each text; see :class:`Augmenter`."""
        texts = check_request(texts, per_text, seed)
        copies = self.augmenters[0].augment(texts, per_text, seed)
        for stage, augmenter in enumerate(self.augmenters[1:], 1):
            by_number = []
            for number in range(per_text):  # a seed of its own, since copies may be equal
                column = [of_text[number] for of_text in copies]
                by_number.append(augmenter.augment(column, 1, derived_seed(seed, "chain", stage, number)))
            copies = [[column[row][0] for column in by_number] for row in range(len(texts))]
        return copies

    def settings(self) -> dict[str, Any]:
        """Return everything that a copy depends on beside its text and seed."""
        return {"augmenter": "chain", "augmenters": [augmenter.settings() for augmenter in self.augmenters]}


def compose(*augmenters: Augmenter) -> Chain:
    """Return an augmenter that applies several in order."""
    return Chain(augmenters)
