"""Token classification: a label for every token, or the entities that runs of labels make."""

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from duonlp.errors import InputError
from duonlp.tasks.base import (
    Arranged,
    Example,
    Options,
    Task,
    check_bool,
    check_choice,
    check_int,
    check_string,
    check_text,
    describe,
    softmax,
)

STRATEGIES = ("none", "simple", "first", "average", "max")


@dataclass(frozen=True)
class TokenClassificationOptions(Options):
    """aggregation_strategy: "none" labels tokens; "simple" joins runs of one tag into entities; "first", "average" and
    "max" first make the tokens of a word agree, by its first token, its mean scores or its surest token.

    ignore_labels: labels (or tags of entities) to leave out.
    stride: read long texts through windows that share this many tokens; without it they are cut, with a warning.
    is_split_into_words: inputs are lists of words; offsets are into the words joined by `delimiter`.
    """

    aggregation_strategy: str = "none"
    ignore_labels: Sequence[str] = ("O",)
    stride: int | None = None
    is_split_into_words: bool = False
    delimiter: str = " "

    def __post_init__(self):
        if isinstance(self.aggregation_strategy, str):
            object.__setattr__(self, "aggregation_strategy", self.aggregation_strategy.lower())
        check_choice("aggregation_strategy", self.aggregation_strategy, STRATEGIES)
        labels = ("O",) if self.ignore_labels is None else self.ignore_labels
        if isinstance(labels, str) or not isinstance(labels, (Sequence, set)):
            raise InputError(f"ignore_labels is {describe(labels)}; it must be a list of labels such as ['O']")
        object.__setattr__(self, "ignore_labels", tuple(labels))
        check_int("stride", self.stride, minimum=0, optional=True)
        check_bool("is_split_into_words", self.is_split_into_words)
        object.__setattr__(self, "delimiter", " " if self.delimiter is None else self.delimiter)
        check_string("delimiter", self.delimiter)
        if self.stride is not None and self.aggregation_strategy == "none":
            raise InputError(
                f"stride is {self.stride} and aggregation_strategy is 'none', which cannot join what windows share; "
                "choose 'simple', 'first', 'average' or 'max'"
            )


@dataclass(slots=True)
class Tokens:
    """The tokens of one row that are not special. All arrays [tokens]; `words` are the tokens' texts."""

    sentence: str
    places: np.ndarray
    starts: np.ndarray
    ends: np.ndarray
    ids: np.ndarray


class TokenClassificationTask(Task):
    """Text -> a list of {"entity" or "entity_group", "score", "word", "start", "end"[, "index"]}.

    Spans and strategies are those of Transformers' TokenClassificationPipeline.
    """

    name = "token-classification"
    head = "token-classification"
    Options = TokenClassificationOptions
    remedy = "shorten it, or pass stride= to read it through windows"

    def __init__(self, tokenizer, config, folder=None):
        super().__init__(tokenizer, config, folder)
        # Tokenizers that mark continuations ("##ing") show which tokens start a word; others leave it to white space.
        self._marks_continuations = bool(getattr(tokenizer.backend_tokenizer.model, "continuing_subword_prefix", None))
        split = [split_tag(label) for label in config.labels]
        names = sorted({tag for _, tag in split})
        self._begins = np.array([begins for begins, _ in split], bool)
        self._tags = np.array([names.index(tag) for _, tag in split])

    @property
    def wants(self):
        return "a text, a list of texts or an iterator of them (lists of words with is_split_into_words=True)"

    def check_options(self, options):
        limit = self.limit()
        if options.stride is not None and limit is not None:
            room = limit - self.tokenizer.num_special_tokens_to_add(False)
            if options.stride >= room:
                raise InputError(f"stride is {options.stride}; it must be less than the {room} tokens of a window")

    def arrange(self, inputs, keywords):
        arranged = super().arrange(inputs, keywords)
        split = arranged.shape == "list" and keywords.get("is_split_into_words", False)
        if split and not all(isinstance(item, (list, tuple)) for item in arranged.items):  # one text, as its words
            return Arranged("list", [arranged.items], options=keywords)
        return arranged

    def output_width(self):
        return self.config.num_labels

    def encode(self, items, options, first=0):
        sentences, word_starts = [], None
        if options.is_split_into_words:
            word_starts = []
            for i, words in enumerate(items):
                self.check_words(words, f"{self.name}: input {first + i}")
                sentences.append(options.delimiter.join(words))
                lengths = np.array([len(word) + len(options.delimiter) for word in words])
                word_starts.append(np.concatenate([[0], np.cumsum(lengths)[:-1]]))
            items = [list(words) for words in items]
        else:
            sentences = items = self.texts(items, first)
        # As in Transformers, the tokenizer's own limit cuts; a row that the model has no positions for is an error.
        limit = self.limit() if options.stride is not None else tokenizer_limit(self.tokenizer)
        keywords = {"truncation": True, "max_length": limit, "stride": options.stride or 0} if limit else {}
        encoded = self.tokenizer(
            items,
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
        cut = []
        for i, (owner, row) in enumerate(zip(owners, rows, strict=True)):
            if examples[owner] and options.stride is None:
                cut.append(first + owner)
                continue
            places = np.flatnonzero(np.array(encoded["special_tokens_mask"][i]) == 0)
            offsets = np.array(encoded["offset_mapping"][i], np.int64).reshape(-1, 2)[places]
            if word_starts is not None:
                words = encoded.word_ids(i)
                shift = np.array([0 if words[p] is None else word_starts[owner][words[p]] for p in places], np.int64)
                offsets = offsets + shift[:, None]
            tokens = Tokens(sentences[owner], places, offsets[:, 0], offsets[:, 1], row["input_ids"][places])
            examples[owner].append(Example(row, state=tokens))
        if cut:
            warnings.warn(
                f"{self.name}: inputs {sorted(set(cut))[:5]} are longer than {limit} tokens and were cut; "
                "pass stride= (and an aggregation_strategy) to read all of them",
                stacklevel=2,
            )
        return examples

    def check_words(self, words: Any, where: str) -> None:
        """Raises InputError unless `words` is a list of at least one word."""
        if isinstance(words, (str, Mapping)) or not isinstance(words, (list, tuple)):
            raise InputError(f"{where} is {describe(words)}; with is_split_into_words=True it must be a list of words")
        if not words:
            raise InputError(f"{where} is an empty list of words; leave it out")
        for word in words:
            check_text(word, f"{where}, a word")

    def decode(self, item, examples, outputs, options):
        found = []
        for example, output in zip(examples, outputs, strict=True):
            scores = softmax(output["logits"][example.state.places])  # [tokens, labels]
            if len(scores):
                found += self.entities(example.state, scores, options)
        return join_windows(found) if len(examples) > 1 else found

    def entities(self, tokens: Tokens, scores: np.ndarray, options: TokenClassificationOptions) -> list[dict]:
        """What one row says: its labelled tokens, or the entities they make. scores: [tokens, labels]."""
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
                        "index": int(tokens.places[i]),
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
            labels, best = agree(scores, begins, lasts, strategy)
            starts, ends = tokens.starts[begins], tokens.ends[lasts]
            to_string = self.tokenizer.convert_tokens_to_string

            def texts(first: int, end: int) -> list[str]:
                return [to_string(words[begins[i] : lasts[i] + 1]) for i in range(first, end)]

            return self.groups(labels, best, starts, ends, texts, options.ignore_labels)
        return self.groups(labels, best, starts, ends, lambda first, end: words[first:end], options.ignore_labels)

    def words(self, tokens: Tokens) -> tuple[list[str], np.ndarray]:
        """Each token's text, and whether it continues the word of the token before it."""
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

    def groups(self, labels, scores, starts, ends, texts, ignore: Sequence[str]) -> list[dict]:
        """Joins neighbours of one tag; a label that begins with B- starts a new entity.

        Args:
            labels, scores, starts, ends: [words], or [tokens] where tokens stand for themselves.
            texts: (first, end) -> the words between them.
        """
        tags = self._tags[labels]
        begins = np.flatnonzero(np.concatenate([[True], (tags[1:] != tags[:-1]) | self._begins[labels][1:]]))
        ended = np.append(begins[1:], len(labels))
        means = np.add.reduceat(scores, begins) / (ended - begins)
        found = []
        for first, end, score in zip(begins.tolist(), ended.tolist(), means.tolist(), strict=True):
            # The group's name is its first label after the first dash, whatever stands before it.
            name = self.config.labels[labels[first]].split("-", 1)[-1]
            if name not in ignore:
                found.append(
                    {
                        "entity_group": name,
                        "score": score,
                        "word": self.tokenizer.convert_tokens_to_string(texts(first, end)),
                        "start": int(starts[first]),
                        "end": int(ends[end - 1]),
                    }
                )
        return found


def tokenizer_limit(tokenizer) -> int | None:
    """The tokenizer's `model_max_length`, or None where it has only the placeholder for "none"."""
    limit = tokenizer.model_max_length
    return int(limit) if limit and 0 < limit < 10**9 else None


def split_tag(label: str) -> tuple[bool, str]:
    """Whether a label begins an entity, and its tag: "B-PER" -> (True, "PER"), "O" -> (False, "O")."""
    if label.startswith(("B-", "I-")):
        return label.startswith("B-"), label[2:]
    return False, label


def agree(scores: np.ndarray, begins: np.ndarray, lasts: np.ndarray, strategy: str) -> tuple[np.ndarray, np.ndarray]:
    """One label and score for each word, from its tokens' scores [tokens, labels]."""
    if strategy == "average":
        chosen = np.add.reduceat(scores, begins, axis=0) / (lasts - begins + 1)[:, None].astype(scores.dtype)
    elif strategy == "first":
        chosen = scores[begins]
    else:
        best = scores.max(axis=1)
        peaks = np.repeat(np.maximum.reduceat(best, begins), lasts - begins + 1)
        places = np.where(best == peaks, np.arange(len(best)), len(best))
        chosen = scores[np.minimum.reduceat(places, begins)]  # the first token that reaches its word's peak
    labels = chosen.argmax(axis=1)
    return labels, np.take_along_axis(chosen, labels[:, None], 1)[:, 0]


def join_windows(entities: list[dict]) -> list[dict]:
    """Of entities that overlap, keeps the longest, and of equally long ones the surest."""
    kept: list[dict] = []
    for entity in sorted(entities, key=lambda e: e["start"]):
        if kept and kept[-1]["start"] <= entity["start"] < kept[-1]["end"]:
            last = kept[-1]
            longer = (entity["end"] - entity["start"]) - (last["end"] - last["start"])
            if longer > 0 or (longer == 0 and entity["score"] > last["score"]):
                kept[-1] = entity
        else:
            kept.append(entity)
    return kept
