"""Replace words by synonyms, from WordNet or from a thesaurus of one's own."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

from duonlp.augmentation.augmenter import Draws, check_request, check_share
from duonlp.augmentation.words import Protection, with_case_of
from duonlp.data.rows.length_batches import cache_key
from duonlp.errors import InputError, MissingExtraError
from duonlp.tasks.base import describe
from duonlp.util.reading import read_json_object

STOP_WORDS = frozenset(
    [
        "a",
        "about",
        "above",
        "after",
        "again",
        "against",
        "all",
        "am",
        "an",
        "and",
        "any",
        "are",
        "aren't",
        "as",
        "at",
        "be",
        "because",
        "been",
        "before",
        "being",
        "below",
        "between",
        "both",
        "but",
        "by",
        "can",
        "can't",
        "cannot",
        "could",
        "couldn't",
        "did",
        "didn't",
        "do",
        "does",
        "doesn't",
        "doing",
        "don't",
        "down",
        "during",
        "each",
        "few",
        "for",
        "from",
        "further",
        "had",
        "hadn't",
        "has",
        "hasn't",
        "have",
        "haven't",
        "having",
        "he",
        "her",
        "here",
        "hers",
        "herself",
        "him",
        "himself",
        "his",
        "how",
        "i",
        "i'd",
        "i'll",
        "i'm",
        "i've",
        "if",
        "in",
        "into",
        "is",
        "isn't",
        "it",
        "it's",
        "its",
        "itself",
        "just",
        "let's",
        "me",
        "more",
        "most",
        "must",
        "my",
        "myself",
        "no",
        "nor",
        "not",
        "now",
        "of",
        "off",
        "on",
        "once",
        "only",
        "or",
        "other",
        "our",
        "ours",
        "ourselves",
        "out",
        "over",
        "own",
        "same",
        "shall",
        "she",
        "should",
        "shouldn't",
        "so",
        "some",
        "such",
        "than",
        "that",
        "that's",
        "the",
        "their",
        "theirs",
        "them",
        "themselves",
        "then",
        "there",
        "there's",
        "these",
        "they",
        "they're",
        "this",
        "those",
        "through",
        "to",
        "too",
        "under",
        "until",
        "up",
        "us",
        "very",
        "was",
        "wasn't",
        "we",
        "we're",
        "we've",
        "were",
        "weren't",
        "what",
        "when",
        "where",
        "which",
        "while",
        "who",
        "whom",
        "why",
        "will",
        "with",
        "won't",
        "would",
        "wouldn't",
        "you",
        "you'd",
        "you'll",
        "you're",
        "you've",
        "your",
        "yours",
        "yourself",
        "yourselves",
    ]
)
"""English words that say little by themselves, whose synonyms in WordNet are mostly wrong."""


@dataclass(frozen=True, eq=False)
class Synonyms:
    """Replaces words by synonyms: "synonym replacement" of EDA (Wei and Zou 2019, https://arxiv.org/abs/1901.11196).

    n = max(1, share * l) of the l words that may be changed are chosen at random among those that have synonyms, and each is
    replaced by a random one everywhere in the text.

    Attributes:
        source: Synonyms by word: a dict, the name of a JSON file with one (``{"error": ["fault", "bug"]}``), or None for the
            English WordNet, which nltk reads.
        share: Share of the words to replace, EDA's alpha.
        stop_words: Words that are never replaced.
        protect: Parts of a text that are never changed.

    Raises:
        InputError: The file is missing or holds something else, WordNet's files are not installed, or `share` is out of range.
        MissingExtraError: nltk is not installed.
    """

    source: Mapping[str, Sequence[str]] | str | Path | None = None
    share: float = 0.1
    stop_words: Sequence[str] | frozenset[str] = STOP_WORDS
    protect: Protection = field(default_factory=Protection)

    def __post_init__(self) -> None:
        check_share("share", self.share)
        source = self.source
        if source is None:
            wordnet()
        else:
            if isinstance(source, (str, Path)):
                advice = "give a JSON object of words with lists of their synonyms"
                if not Path(source).expanduser().is_file():
                    raise InputError(f"there is no file {str(source)!r}; {advice}")
                source = read_json_object(Path(source).expanduser(), error=InputError, advice=advice)
            object.__setattr__(self, "_table", _checked_table(source))

    def of(self, word: str) -> tuple[str, ...]:
        """Return the synonyms of a word, in lower case and sorted, without itself and without protected words."""
        word = word.casefold()
        synonyms = _of_wordnet(word) if self.source is None else self._table.get(word, ())
        return tuple(synonym for synonym in synonyms if synonym not in self.protect.single_words)

    def augment(self, texts: Sequence[str], per_text: int = 1, seed: int = 0) -> list[list[str]]:
        """Return `per_text` copies of each text; see :class:`Augmenter`."""
        texts = check_request(texts, per_text, seed)
        return [[self._copy(text, seed, copy) for copy in range(per_text)] for text in texts]

    def settings(self) -> dict[str, Any]:
        """Return everything that a copy depends on beside its text and seed."""
        return {"augmenter": "synonyms", "share": self.share, "stop_words": sorted(self.stop_words)} | {
            "source": self.identity(), "protect": protection_settings(self.protect)
        }  # fmt: skip

    def identity(self) -> str:
        """Return the version of WordNet, or a hash of the synonyms."""
        if self.source is None:
            return f"WordNet {wordnet().get_version()}"
        return cache_key(sorted(self._table.items()), ())

    def _copy(self, text: str, seed: int, copy: int) -> str:
        pieces, draws = self.protect.pieces(text), Draws(seed, text, copy, "synonyms")
        self.replace(pieces, max(1, int(self.share * (len(pieces) // 2))), draws)
        return "".join(pieces)

    def replace(self, pieces: list[str], count: int, draws: Draws) -> None:
        """Replace up to `count` different words of :meth:`Protection.pieces` in place."""
        words = sorted({piece.casefold() for piece in pieces[1::2]} - {*self.stop_words})
        for number in draws.order(len(words)):
            if not count:
                return
            if not (synonyms := self.of(words[number])):
                continue
            synonym = synonyms[draws.below(len(synonyms))]
            for place in range(1, len(pieces), 2):
                if pieces[place].casefold() == words[number]:
                    pieces[place] = with_case_of(synonym, pieces[place])
            count -= 1


def protection_settings(protect: Protection) -> list[Any]:
    """Return what a protection consists of, JSON-compatible."""
    return [list(protect.words), list(protect.patterns), protect.identifiers]


def wordnet() -> Any:
    """Return nltk's reader of the English WordNet; nothing is downloaded.

    Raises:
        MissingExtraError: nltk is not installed.
        InputError: The files of WordNet are not.
    """
    try:
        from nltk.corpus import wordnet as reader
    except ImportError as error:
        raise MissingExtraError(
            'WordNet is read with nltk, which is not installed; pip install "duonlp[few-labels]"'
        ) from error
    try:
        reader.ensure_loaded()
    except LookupError:
        raise InputError(
            "the files of WordNet are not installed; run python -m nltk.downloader wordnet, or pass your own synonyms"
        ) from None
    return reader


@lru_cache(maxsize=1 << 16)
def _of_wordnet(word: str) -> tuple[str, ...]:
    names = {name.replace("_", " ").lower() for synset in wordnet().synsets(word) for name in synset.lemma_names()}
    return tuple(sorted(name for name in names - {word} if all(c.isalpha() or c == " " for c in name)))


def _checked_table(source: Any) -> dict[str, tuple[str, ...]]:
    if not isinstance(source, Mapping) or not source:
        raise InputError(f'source is {describe(source)}; give a dict such as {{"error": ["fault", "bug"]}}')
    table: dict[str, tuple[str, ...]] = {}
    for word, synonyms in source.items():
        is_list = isinstance(synonyms, (list, tuple, set, frozenset))
        if not isinstance(word, str) or not is_list or not all(isinstance(s, str) and s.strip() for s in synonyms):
            raise InputError(f"the synonyms of {word!r} are {describe(synonyms)}; give a list of nonempty texts")
        table[word.casefold()] = tuple(sorted({*synonyms} - {word}))
    return table
