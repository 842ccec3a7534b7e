"""A tokenizer of Transformers as TensorFlow operations: texts to ids, with the same result."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf

from duonlp.errors import InputError
from duonlp.tasks.base import check_choice, check_int
from duonlp.typing import Tokenizer
from duonlp.util.reading import parse_json
from duonlp.util.tokenization import tokenize
from tfnlp.text.added_tokens import AddedTokens, Sections
from tfnlp.text.characters import Characters, decode, dense, interleaved, places, row_ids
from tfnlp.text.merges import BytePairs
from tfnlp.text.normalizers import make_normalizer
from tfnlp.text.splitting import make_splitter
from tfnlp.text.subwords import SubwordModel, WordPiece
from tfnlp.text.unigram import Unigram

MODELS: dict[str, type[Any]] = {"WordPiece": WordPiece, "BPE": BytePairs, "Unigram": Unigram}

STRATEGIES = ("longest_first", "only_first", "only_second")


class Tokens(NamedTuple):
    """Tokens of texts, one text after another.

    Attributes:
        ids: int32 [n].
        begins: int32 [n], first character of each in its text.
        ends: int32 [n], end of its characters.
        words: int32 [n], a number that adjacent tokens share if they are of one word.
        lengths: int32 [B], number of those of each text.
    """

    ids: tf.Tensor
    begins: tf.Tensor
    ends: tf.Tensor
    words: tf.Tensor
    lengths: tf.Tensor

    def slice(self, starts: tf.Tensor, lengths: tf.Tensor, texts: tf.Tensor | None = None) -> "Tokens":
        """Return ``lengths`` tokens from ``starts`` on, int32 [m] each, of each text, or of these, int32 [m]."""
        rows = row_ids(lengths)
        base = tf.cumsum(self.lengths, exclusive=True)
        first = (base if texts is None else tf.gather(base, texts)) + starts
        index = tf.gather(first, rows) + places(lengths, rows)
        return Tokens._make([*(tf.gather(column, index) for column in self[:-1]), lengths])


class Pieces(NamedTuple):
    """The pieces of texts.

    Attributes:
        ids: int32 [P], the id of an added token, or -1 for text.
        owners: int32 [P], number of the text.
        begins: int32 [P], first character of each added token in its text.
        ends: int32 [P], end of its characters.
    """

    ids: tf.Tensor
    owners: tf.Tensor
    begins: tf.Tensor
    ends: tf.Tensor


class Rows(NamedTuple):
    """Rows of a model's input, one after another: the tokens of one or two texts with special tokens.

    Attributes:
        ids: int32 [n].
        types: int32 [n], token types.
        sequences: int32 [n], 0 or 1 for the tokens of the first or second text, and -1 for special tokens.
        begins: int32 [n], see Tokens; 0 for special tokens.
        ends: int32 [n].
        words: int32 [n].
        lengths: int32 [B], number of tokens of each row.
    """

    ids: tf.Tensor
    types: tf.Tensor
    sequences: tf.Tensor
    begins: tf.Tensor
    ends: tf.Tensor
    words: tf.Tensor
    lengths: tf.Tensor


class Template(NamedTuple):
    """Where a tokenizer adds special tokens.

    Attributes:
        parts: (sequence, token type, ids of special tokens) of each part; sequence is -1 for special tokens.
    """

    parts: list[tuple[int, int, list[int]]]

    @property
    def special(self) -> int:
        """Number of special tokens."""
        return sum(len(ids) for _, _, ids in self.parts)


class GraphTokenizer(tf.Module):
    """A fast tokenizer of Transformers as TensorFlow operations.

    Args:
        tokenizer: The tokenizer, of which a copy is made.

    Attributes:
        pad_token_id: Id with which rows are padded.

    Raises:
        InputError: It is not a fast tokenizer, or has a part that cannot be put in a graph, which is named.
        MissingExtraError: tensorflow-text is not installed.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        super().__init__()
        backend = getattr(tokenizer, "backend_tokenizer", None)
        if backend is None:
            raise InputError(
                f"a graph needs a fast tokenizer, got {type(tokenizer).__name__}; load one with transformers.AutoTokenizer"
            )
        if getattr(tokenizer, "split_special_tokens", False):
            raise InputError("split_special_tokens=True cannot be put in a graph; set it to False")
        spec = parse_json(backend.to_str())
        kind = spec["model"]["type"]
        if kind not in MODELS:
            raise InputError(f"a {kind} tokenizer cannot be put in a graph; expected one of {', '.join(MODELS)}")
        self._normalizer = make_normalizer(spec["normalizer"])
        self._splitter = make_splitter(spec["pre_tokenizer"])
        self._model: SubwordModel = MODELS[kind](spec["model"])
        self._check_pairing(spec)
        added = [token for token in spec["added_tokens"] if token["content"]]
        self._raw = _added_tokens([token for token in added if not token["normalized"]], None)
        self._normalized = _added_tokens([token for token in added if token["normalized"]], backend.normalizer)
        self._templates = [_template(tokenizer, pair) for pair in (False, True)]
        self._trim = _trimmer(spec["post_processor"], backend)
        self._left_truncated = tokenizer.truncation_side == "left"
        self._left_padded = tokenizer.padding_side == "left"
        self.pad_token_id = tokenizer.pad_token_id
        self._pad_type = tokenizer.pad_token_type_id
        self.names = tuple(tokenizer.model_input_names)

    def _check_pairing(self, spec: Mapping[str, Any]) -> None:
        text = str(spec["pre_tokenizer"])
        if spec["model"]["type"] == "BPE" and "ByteLevel" not in text:
            raise InputError(
                "BPE without the pre-tokenizer ByteLevel cannot be put in a graph; use a byte-level tokenizer"
            )
        if spec["model"]["type"] != "BPE" and "ByteLevel" in text:
            raise InputError(f"ByteLevel with {spec['model']['type']} cannot be put in a graph; use BPE")

    # -- tokens ----------------------------------------------------------------------------------------------------

    def tokens(self, texts: tf.Tensor) -> Tokens:
        """Return the tokens of texts, string [B], without special tokens."""
        texts = tf.strings.unicode_transcode(texts, "UTF-8", "UTF-8")  # replaces what is not UTF-8
        rows = tf.size(texts)
        characters, none = decode(texts), tf.zeros([rows], tf.int32)
        pieces = Pieces(none - 1, tf.range(rows), none, none)
        if self._raw is not None:
            characters, pieces = split_pieces(characters, pieces, self._raw(texts))
        for step in self._normalizer:
            characters = step(characters)
        if self._normalized is not None:
            texts = characters.texts(tf.size(pieces.ids))
            characters, pieces = split_pieces(characters, pieces, self._normalized(texts))
        for step in self._splitter:
            characters = step(characters)
        return self._subwords(characters, pieces, rows)

    def _subwords(self, characters: Characters, added: Pieces, rows: tf.Tensor) -> Tokens:
        """Return the tokens of the words and the added tokens, in order."""
        words, starts = characters.words()
        different, index = tf.unique(words)
        subwords = self._model(different).of(index)
        start = tf.gather(starts, row_ids(subwords.lengths))
        begins, ends = at(characters.starts, start + subwords.begins), at(characters.ends, start + subwords.ends - 1)
        # Words to pieces, pieces to texts.
        pieces = tf.gather(characters.pieces, starts)
        sizes = tf.math.unsorted_segment_sum(subwords.lengths, pieces, tf.size(added.ids))
        is_added = added.ids >= 0
        order = interleaved([sizes, tf.cast(is_added, tf.int32)])
        # Added tokens are words, numbered on.
        words, number = row_ids(subwords.lengths), tf.size(starts) + tf.range(tf.size(added.ids))
        columns = zip((subwords.ids, begins, ends, words), (added.ids, added.begins, added.ends, number))
        columns = (tf.gather(tf.concat([own, tf.boolean_mask(other, is_added)], 0), order) for own, other in columns)
        lengths = tf.math.unsorted_segment_sum(sizes + tf.cast(is_added, tf.int32), added.owners, rows)
        return Tokens._make([*columns, lengths])

    # -- rows ------------------------------------------------------------------------------------------------------

    def rows(
        self, texts: tf.Tensor, pairs: tf.Tensor | None = None, max_length: int | None = None,
        strategy: str = "longest_first", special: bool = True,
    ) -> Rows:  # fmt: skip
        """Return the rows of texts or pairs of texts.

        Args:
            texts: string [B].
            pairs: string [B], the second texts.
            max_length: Number of tokens to truncate to; None for no limit.
            strategy: What to truncate of pairs: "longest_first", "only_first" or "only_second".
            special: Whether to add special tokens.

        Raises:
            InputError: ``max_length`` leaves no room for the special tokens, or the strategy is unknown.
        """
        check_choice("strategy", strategy, STRATEGIES)
        check_int("max_length", max_length, minimum=1, optional=True)
        sequences = [self.tokens(texts)] + ([] if pairs is None else [self.tokens(pairs)])
        template = self._templates[pairs is not None]
        if not special:
            template = Template([part for part in template.parts if part[0] >= 0])
        if max_length is not None:
            if max_length < template.special:
                raise InputError(
                    f"max_length is {max_length}, but there are {template.special} special tokens; expected at least as many"
                )
            sequences = self._truncated(sequences, max_length - template.special, strategy)
        return join(template, [self.trimmed(tokens) for tokens in sequences])

    def _truncated(self, sequences: list[Tokens], room: int, strategy: str) -> list[Tokens]:
        lengths = [tokens.lengths for tokens in sequences]
        if len(lengths) == 1:
            kept = [tf.minimum(lengths[0], room)]
        elif strategy == "longest_first":
            short = tf.minimum(*lengths)
            long = tf.where(short > room, short, tf.maximum(short, room - short))
            both = short + long > room
            short = tf.where(both, room // 2, short)
            long = tf.where(both, room // 2 + room % 2, long)
            swapped, fits = lengths[0] > lengths[1], lengths[0] + lengths[1] <= room
            kept = [tf.where(swapped, long, short), tf.where(swapped, short, long)]
            kept = [tf.where(fits, own, tf.minimum(own, n)) for own, n in zip(lengths, kept)]
        else:
            target = STRATEGIES.index(strategy) - 1
            excess = tf.maximum(lengths[0] + lengths[1] - room, 0)
            message = (
                f"a text of the pair that is not to be truncated leaves no room for the other; strategy is {strategy!r}"
            )
            check = tf.debugging.assert_equal(tf.reduce_all((excess == 0) | (lengths[target] > excess)), True, message)
            with tf.control_dependencies([] if check is None else [check]):
                kept = [n - excess if i == target else n for i, n in enumerate(lengths)]
        starts = [own - n if self._left_truncated else tf.zeros_like(n) for own, n in zip(lengths, kept)]
        return [tokens.slice(start, n) for tokens, start, n in zip(sequences, starts, kept)]

    def trimmed(self, tokens: Tokens) -> Tokens:
        """Return tokens with the offsets that the tokenizer reports, which may exclude spaces."""
        return tokens if self._trim is None else self._trim(tokens)

    def template(self, pair: bool) -> Template:
        """Return where special tokens are added to a text, or to a pair."""
        return self._templates[pair]

    def inputs(self, rows: Rows, length: int | None = None) -> dict[str, tf.Tensor]:
        """Return a model's inputs, int32 [B, T]: input_ids, attention_mask, and token_type_ids if the tokenizer has them.

        Args:
            rows: The rows.
            length: Number of columns; None for that of the longest row.
        """
        columns = {"input_ids": (rows.ids, self.pad_token_id or 0), "attention_mask": (tf.ones_like(rows.ids), 0)}
        if "token_type_ids" in self.names:
            columns["token_type_ids"] = rows.types, self._pad_type
        return {
            name: dense(values, rows.lengths, fill, length, self._left_padded)
            for name, (values, fill) in columns.items()
        }


class TrimOffsets(tf.Module):
    """Exclude the spaces at the ends of tokens from their offsets.

    Args:
        spaces: int32 [V, 3], number of spaces at the beginning and at the end of each token; and the number of characters of an
            added token that takes the whitespace before it, 0 for others.
        prefix: Whether a space at the beginning of a text may be one that the tokenizer inserted.
    """

    def __init__(self, spaces: np.ndarray, prefix: bool) -> None:
        super().__init__()
        self._spaces, self._prefix = spaces, prefix

    def __call__(self, tokens: Tokens) -> Tokens:
        """Return the tokens with other offsets."""
        leading, trailing, sizes = tf.unstack(tf.gather(tf.constant(self._spaces), tokens.ids), axis=1)
        leading = tf.where(sizes > 0, tokens.ends - tokens.begins - sizes, leading)
        if self._prefix:
            is_first = (places(tokens.lengths, row_ids(tokens.lengths)) == 0) | (tokens.begins == 0)
            leading = tf.where(is_first & (leading == 1), 0, leading)
        begins = tf.minimum(tokens.begins + leading, tokens.ends)
        trimmed = tf.maximum(tokens.ends - trailing, begins)
        return tokens._replace(begins=begins, ends=tf.where(tokens.ends >= trailing, trimmed, tokens.ends))


def _trimmer(spec: Mapping[str, Any] | None, backend: Any) -> TrimOffsets | None:
    """Return what trims offsets as a post-processor in tokenizer.json does, or None if it does not."""
    if spec is None:
        return None
    if spec["type"] == "Sequence":
        found = [_trimmer(part, backend) for part in spec["processors"]]
        return next((trimmer for trimmer in found if trimmer is not None), None)
    if not spec.get("trim_offsets"):
        return None
    vocabulary = backend.get_vocab(True)
    spaces = np.zeros((max(vocabulary.values()) + 1, 3), np.int32)
    for token, number in vocabulary.items():
        text = token.replace("\u0120", " ")  # which stands for a space
        spaces[number, :2] = len(text) - len(text.lstrip()), len(text) - len(text.rstrip())
    for number, token in backend.get_added_tokens_decoder().items():
        spaces[number, 2] = len(token.content) if token.lstrip else 0
    return TrimOffsets(spaces, bool(spec["add_prefix_space"]))


def split_pieces(characters: Characters, pieces: Pieces, sections: Sections) -> tuple[Characters, Pieces]:
    """Return the characters that are text, and the pieces, after added tokens were found in pieces that are text.

    Args:
        characters: Characters of the pieces.
        pieces: The pieces.
        sections: Sections of their texts; none for added tokens.
    """
    is_added = pieces.ids >= 0
    counts = sections.counts, tf.cast(is_added, tf.int32)
    order, parents = interleaved(counts), row_ids(tf.add_n(counts))
    ids = tf.gather(tf.concat([sections.ids, tf.boolean_mask(pieces.ids, is_added)], 0), order)
    none = tf.zeros([tf.reduce_sum(counts[1])], tf.int32)
    lengths = tf.gather(tf.concat([sections.lengths, none], 0), order)
    numbers = row_ids(lengths)  # the new piece of each character
    # The characters of an added token; an earlier one has none.
    first, last = tf.cumsum(lengths, exclusive=True), tf.cumsum(lengths) - 1
    begins = tf.where(lengths > 0, at(characters.starts, first), tf.gather(pieces.begins, parents))
    ends = tf.where(lengths > 0, at(characters.ends, last), tf.gather(pieces.ends, parents))
    text = characters._replace(pieces=numbers).keep(tf.gather(ids, numbers) < 0)
    return text.with_piece_starts(), Pieces(ids, tf.gather(pieces.owners, parents), begins, ends)


def at(values: tf.Tensor, index: tf.Tensor) -> tf.Tensor:
    """Return values [n] at an index [m], which may be outside if the result is not used."""
    values = tf.concat([values, [0]], 0)
    return tf.gather(values, tf.clip_by_value(index, 0, tf.size(values) - 1))


def join(template: Template, sequences: list[Tokens]) -> Rows:
    """Return the rows that a template makes of the tokens of texts."""
    one = tf.ones_like(sequences[0].lengths)
    parts, lengths = [], []
    for sequence, kind, special in template.parts:
        tokens = sequences[max(sequence, 0)]
        if sequence < 0:
            ids = tf.tile(tf.constant(special, tf.int32), [tf.size(one)])
            none = tf.zeros_like(ids)
            tokens = Tokens(ids, none, none, none, one * len(special))
        own = (tf.fill(tf.shape(tokens.ids), n) for n in (kind, sequence))
        parts.append([tokens.ids, *own, tokens.begins, tokens.ends, tokens.words])
        lengths.append(tokens.lengths)
    order = interleaved(lengths)
    return Rows._make([*(tf.gather(tf.concat(column, 0), order) for column in zip(*parts)), tf.add_n(lengths)])


def _added_tokens(tokens: list[Mapping[str, Any]], normalizer: Any) -> AddedTokens | None:
    """Return what finds added tokens, whose contents a normalizer normalizes, or None if there are none.

    Raises:
        InputError: A token has to be a word of its own.
    """
    contents: dict[str, int] = {}
    strips: dict[str, tuple[bool, bool]] = {}
    for token in tokens:
        if token["single_word"]:
            raise InputError(
                f"the added token {token['content']!r} has single_word=True, which cannot be put in a graph; add it without"
            )
        content = token["content"] if normalizer is None else normalizer.normalize_str(token["content"])
        if content:
            contents[content], strips[content] = token["id"], (token["lstrip"], token["rstrip"])
    return AddedTokens(contents, strips) if contents else None


def _template(tokenizer: Tokenizer, pair: bool) -> Template:
    """Return where a tokenizer adds special tokens, by looking at a text, or a pair, that it tokenizes."""
    for text in ("a", "1", ".", *sorted(tokenizer.get_vocab(), key=len)[:1000]):
        encoded = tokenize(tokenizer, *[[text]] * (1 + pair), return_token_type_ids=True, verbose=False)
        sequences = [-1 if n is None else n for n in encoded.sequence_ids(0)]
        if set(range(1 + pair)) <= set(sequences):
            break
    parts: list[tuple[int, int, list[int]]] = []
    for sequence, kind, number in zip(sequences, encoded["token_type_ids"][0], encoded["input_ids"][0], strict=True):
        if parts and parts[-1][:2] == (sequence, kind):
            parts[-1][2].append(number)
        else:
            parts.append((sequence, kind, [number]))
    return Template([(sequence, kind, [] if sequence >= 0 else ids) for sequence, kind, ids in parts])
