"""Token classification: labels of tokens, or the entities that they form."""

import os
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from duonlp.config import TransformerConfig
from duonlp.errors import InputError
from duonlp.tasks.base import (
    Example,
    Options,
    ParsedInputs,
    check_bool,
    check_choice,
    check_int,
    check_string,
    check_text,
    describe,
    softmax,
)
from duonlp.tasks.text import TextTask
from duonlp.typing import Tokenizer
from duonlp.util.tokenization import tokenize

STRATEGIES = ("none", "simple", "first", "average", "max")


@dataclass(frozen=True)
class TokenClassificationOptions(Options):
    """Options of token classification.

    Attributes:
        aggregation_strategy: "none" labels tokens; "simple" groups adjacent tokens with the same tag into entities; "first",
            "average" and "max" first assign one label to each word, by its first token, its mean scores or its most
            confident token.
        ignore_labels: Labels (or tags of entities) to omit.
        stride: Read long texts in windows that overlap by this many tokens; by default they are truncated with a warning.
        is_split_into_words: Inputs are lists of words; offsets refer to the words joined by ``delimiter``.
        delimiter: Separator with which words are joined.
    """

    aggregation_strategy: str = "none"
    ignore_labels: Sequence[str] = ("O",)
    stride: int | None = None
    is_split_into_words: bool = False
    delimiter: str = " "

    def __post_init__(self) -> None:
        if isinstance(self.aggregation_strategy, str):
            object.__setattr__(self, "aggregation_strategy", self.aggregation_strategy.lower())
        check_choice("aggregation_strategy", self.aggregation_strategy, STRATEGIES)
        labels = ("O",) if self.ignore_labels is None else self.ignore_labels
        if isinstance(labels, str) or not isinstance(labels, (Sequence, set)):
            raise InputError(f"ignore_labels is {describe(labels)}; expected a list of labels such as ['O']")
        object.__setattr__(self, "ignore_labels", tuple(labels))
        check_int("stride", self.stride, minimum=0, optional=True)
        check_bool("is_split_into_words", self.is_split_into_words)
        object.__setattr__(self, "delimiter", " " if self.delimiter is None else self.delimiter)
        check_string("delimiter", self.delimiter)
        if self.stride is not None and self.aggregation_strategy == "none":
            raise InputError(
                f"stride is {self.stride}, but aggregation_strategy is 'none', which cannot merge overlapping windows; "
                "use 'simple', 'first', 'average' or 'max'"
            )


@dataclass(slots=True)
class Tokens:
    """The tokens of one row without special tokens.

    Attributes:
        sentence: The text.
        positions: int [tokens], positions in the row.
        starts: int [tokens], first character of each token.
        ends: int [tokens], end of each token's characters.
        ids: int [tokens].
    """

    sentence: str
    positions: np.ndarray
    starts: np.ndarray
    ends: np.ndarray
    ids: np.ndarray


class TokenClassificationTask(TextTask[TokenClassificationOptions]):
    """Text -> a list of {"entity" or "entity_group", "score", "word", "start", "end"[, "index"]}.

    Spans and strategies follow Transformers' TokenClassificationPipeline.
    """

    name = "token-classification"
    input_options = ("is_split_into_words",)
    head = "token-classification"
    Options = TokenClassificationOptions
    remedy = "shorten it, or pass stride= to read it through windows"

    def __init__(
        self, tokenizer: Tokenizer, config: TransformerConfig, folder: str | os.PathLike[str] | None = None
    ) -> None:
        super().__init__(tokenizer, config, folder)
        # Tokenizers that mark continuations ("##ing") tell which tokens start a word; otherwise whitespace does.
        self._marks_continuations = bool(getattr(tokenizer.backend_tokenizer.model, "continuing_subword_prefix", None))
        split = [split_tag(label) for label in config.labels]
        tags = sorted({tag for _, tag in split})
        self._begins = np.array([begins for begins, _ in split], bool)  # [labels]
        self._tags = np.array([tags.index(tag) for _, tag in split])  # [labels]

    @property
    def accepted_inputs(self) -> str:
        return "a text, a list of texts or an iterator of texts (lists of words with is_split_into_words=True)"

    def check_changes(self, options: TokenClassificationOptions, changes: Mapping[str, Any], of_call: bool) -> None:
        if of_call and changes.get("delimiter") not in (None, " ") and not options.is_split_into_words:
            raise InputError(
                f"delimiter={options.delimiter!r} joins words, so it has no effect on texts; pass is_split_into_words=True, or "
                "omit it"
            )

    def check_options(self, options: TokenClassificationOptions) -> None:
        limit = self.limit()
        if options.stride is not None and limit is not None:
            room = limit - self.tokenizer.num_special_tokens_to_add(False)
            if options.stride >= room:
                raise InputError(f"stride is {options.stride}; expected less than the {room} tokens of a window")

    def parse_inputs(self, inputs: Any, keywords: dict[str, Any]) -> ParsedInputs:
        parsed = super().parse_inputs(inputs, keywords)
        split = parsed.kind == "list" and keywords.get("is_split_into_words", False)
        if split and not all(isinstance(item, (list, tuple)) for item in parsed.items):  # one text, as its words
            parsed.items = [parsed.items]
        return parsed

    def output_width(self) -> int:
        return self.config.num_labels

    def encode(self, items: Sequence[Any], options: TokenClassificationOptions, first: int = 0) -> list[list[Example]]:
        sentences: list[str] = []
        word_starts: list[np.ndarray] | None = None
        tokenizer_inputs: list[Any]
        if options.is_split_into_words:
            word_starts = []
            for i, words in enumerate(items):
                self.check_words(words, f"{self.name}: input {first + i}")
                sentences.append(options.delimiter.join(words))
                lengths = np.array([len(word) + len(options.delimiter) for word in words])
                word_starts.append(np.concatenate([[0], np.cumsum(lengths)[:-1]]))
            tokenizer_inputs = [list(words) for words in items]
        else:
            sentences = tokenizer_inputs = self.texts(items, first)
        # As in Transformers, only the tokenizer's limit truncates; exceeding the model's positions is an error.
        limit = self.limit() if options.stride is not None else tokenizer_limit(self.tokenizer)
        keywords = {"truncation": True, "max_length": limit, "stride": options.stride or 0} if limit else {}
        encoded = tokenize(
            self.tokenizer,
            tokenizer_inputs,
            is_split_into_words=options.is_split_into_words,
            return_overflowing_tokens=bool(limit),
            return_special_tokens_mask=True,
            return_offsets_mapping=True,
            return_attention_mask=True,
            verbose=False,
            **keywords,
        )
        owners = encoded.get("overflow_to_sample_mapping", list(range(len(items))))
        rows = self.rows(encoded, items=[first + i for i in owners])
        examples: list[list[Example]] = [[] for _ in items]
        truncated: set[int] = set()
        for i, (owner, row) in enumerate(zip(owners, rows, strict=True)):
            if examples[owner] and options.stride is None:
                truncated.add(first + owner)
                continue
            positions = np.flatnonzero(np.array(encoded["special_tokens_mask"][i]) == 0)
            offsets = np.array(encoded["offset_mapping"][i], np.int64).reshape(-1, 2)[positions]  # [tokens, 2]
            if word_starts is not None:
                words = encoded.word_ids(i)
                shift = np.array([0 if words[p] is None else word_starts[owner][words[p]] for p in positions], np.int64)
                offsets = offsets + shift[:, None]
            tokens = Tokens(sentences[owner], positions, offsets[:, 0], offsets[:, 1], row["input_ids"][positions])
            examples[owner].append(Example(row, state=tokens))
        if truncated:
            warnings.warn(
                f"{self.name}: inputs {sorted(truncated)[:5]} are longer than {limit} tokens and were truncated; "
                "pass stride= (and an aggregation_strategy) to read them completely",
                stacklevel=2,
            )
        return examples

    def check_words(self, words: Any, where: str) -> None:
        """Raise InputError unless ``words`` is a nonempty list of words.

        Args:
            words: The words of one text.
            where: Name of the text, for error messages.
        """
        if isinstance(words, (str, Mapping)) or not isinstance(words, (list, tuple)):
            raise InputError(f"{where} is {describe(words)}; is_split_into_words=True expects a list of words")
        if not words:
            raise InputError(f"{where} is an empty list of words; remove it")
        for word in words:
            check_text(word, f"{where}, a word")

    def decode(
        self,
        item: Any,
        examples: Sequence[Example],
        outputs: Sequence[dict[str, Any]],
        options: TokenClassificationOptions,
    ) -> list[dict[str, Any]]:
        entities: list[dict[str, Any]] = []
        for example, output in zip(examples, outputs, strict=True):
            scores = softmax(output["logits"][example.state.positions])  # [tokens, labels]
            if len(scores):
                entities += self.entities(example.state, scores, options)
        return merge_overlaps(entities) if len(examples) > 1 else entities

    def entities(self, tokens: Tokens, scores: np.ndarray, options: TokenClassificationOptions) -> list[dict[str, Any]]:
        """Return the labeled tokens of one row, or its entities.

        Args:
            tokens: The tokens of the row.
            scores: float32 [tokens, labels].
            options: Options of the call.
        """
        strategy = options.aggregation_strategy
        words, continues = self.words(tokens)
        if strategy in ("none", "simple"):
            labels = scores.argmax(axis=1)
            best = np.take_along_axis(scores, labels[:, None], 1)[:, 0]
            starts, ends = tokens.starts, tokens.ends
            if strategy == "none":
                ignored = [label in options.ignore_labels for label in self.config.labels]
                return [
                    {
                        "entity": self.config.labels[labels[i]],
                        "score": float(best[i]),
                        "index": int(tokens.positions[i]),
                        "word": words[i],
                        "start": int(starts[i]),
                        "end": int(ends[i]),
                    }
                    for i in np.flatnonzero(~np.array(ignored, bool)[labels]).tolist()
                ]
        else:
            continues[0] = False
            begins = np.flatnonzero(~continues)  # the first token of each word
            lasts = np.append(begins[1:], len(words)) - 1
            labels, best = label_words(scores, begins, lasts, strategy)
            starts, ends = tokens.starts[begins], tokens.ends[lasts]
            to_string = self.tokenizer.convert_tokens_to_string

            def texts(first: int, end: int) -> list[str]:
                return [to_string(words[begins[i] : lasts[i] + 1]) for i in range(first, end)]

            return self.group_entities(labels, best, starts, ends, texts, options.ignore_labels)
        return self.group_entities(
            labels, best, starts, ends, lambda first, end: words[first:end], options.ignore_labels
        )

    def words(self, tokens: Tokens) -> tuple[list[str], np.ndarray]:
        """Return the tokens' texts, and bool [tokens]: whether each token continues the previous token's word."""
        sentence, unknown = tokens.sentence, self.tokenizer.unk_token_id
        words = self.tokenizer.convert_ids_to_tokens(tokens.ids.tolist())
        starts, ends = tokens.starts.tolist(), tokens.ends.tolist()
        if self._marks_continuations:
            continues = [len(word) != b - a for word, a, b in zip(words, starts, ends, strict=True)]
        else:
            continues = [a > 0 and " " not in sentence[a - 1 : a + 1] for a in starts]
        for i in np.flatnonzero(tokens.ids == unknown).tolist() if unknown is not None else ():
            words[i], continues[i] = sentence[starts[i] : ends[i]], False
        return words, np.array(continues, bool)

    def group_entities(
        self,
        labels: np.ndarray,
        scores: np.ndarray,
        starts: np.ndarray,
        ends: np.ndarray,
        texts: Callable[[int, int], list[str]],
        ignore: Sequence[str],
    ) -> list[dict[str, Any]]:
        """Group adjacent units (words or tokens) with the same tag; a label that begins with B- starts a new entity.

        Args:
            labels: int [units], ids of labels.
            scores: float32 [units].
            starts: int [units], first character of each.
            ends: int [units], end of each one's characters.
            texts: Function from (first, end) to the texts of these units.
            ignore: Tags to omit.
        """
        tags = self._tags[labels]
        begins = np.flatnonzero(np.concatenate([[True], (tags[1:] != tags[:-1]) | self._begins[labels][1:]]))
        ended = np.append(begins[1:], len(labels))
        means = np.add.reduceat(scores, begins) / (ended - begins)
        entities = []
        for first, end, score in zip(begins.tolist(), ended.tolist(), means.tolist(), strict=True):
            # As in Transformers, the tag is whatever follows the first dash, even if the prefix is not B or I.
            name = self.config.labels[labels[first]].split("-", 1)[-1]
            if name not in ignore:
                entities.append(
                    {
                        "entity_group": name,
                        "score": score,
                        "word": self.tokenizer.convert_tokens_to_string(texts(first, end)),
                        "start": int(starts[first]),
                        "end": int(ends[end - 1]),
                    }
                )
        return entities


def tokenizer_limit(tokenizer: Tokenizer) -> int | None:
    """Return the tokenizer's ``model_max_length``, or None if it is the placeholder for no limit."""
    limit = tokenizer.model_max_length
    return int(limit) if limit and 0 < limit < 10**9 else None


def split_tag(label: str) -> tuple[bool, str]:
    """Return whether a label begins an entity, and its tag: "B-PER" -> (True, "PER"), "O" -> (False, "O")."""
    if label.startswith(("B-", "I-")):
        return label.startswith("B-"), label[2:]
    return False, label


def label_words(
    scores: np.ndarray, begins: np.ndarray, lasts: np.ndarray, strategy: str
) -> tuple[np.ndarray, np.ndarray]:
    """Assign one label to each word.

    Args:
        scores: float32 [tokens, labels].
        begins: int [words], first token of each word.
        lasts: int [words], last token of each word.
        strategy: "first", "average" or "max".

    Returns:
        labels: int [words].
        scores: float32 [words].
    """
    if strategy == "average":
        word_scores = np.add.reduceat(scores, begins, axis=0) / (lasts - begins + 1)[:, None].astype(scores.dtype)
    elif strategy == "first":
        word_scores = scores[begins]
    else:
        best = scores.max(axis=1)
        peaks = np.repeat(np.maximum.reduceat(best, begins), lasts - begins + 1)
        positions = np.where(best == peaks, np.arange(len(best)), len(best))
        word_scores = scores[np.minimum.reduceat(positions, begins)]  # first token with the word's highest score
    labels = word_scores.argmax(axis=1)
    return labels, np.take_along_axis(word_scores, labels[:, None], 1)[:, 0]


def merge_overlaps(entities: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Keep the longest of overlapping entities, and the one with the highest score of equally long ones."""
    merged: list[dict[str, Any]] = []
    for entity in sorted(entities, key=lambda e: e["start"]):
        if merged and merged[-1]["start"] <= entity["start"] < merged[-1]["end"]:
            last = merged[-1]
            longer = (entity["end"] - entity["start"]) - (last["end"] - last["start"])
            if longer > 0 or (longer == 0 and entity["score"] > last["score"]):
                merged[-1] = entity
        else:
            merged.append(entity)
    return merged
