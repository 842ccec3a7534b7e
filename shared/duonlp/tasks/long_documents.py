"""Documents that exceed the model's input length: split between sentences, with the results of the parts combined."""

import warnings
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from duonlp.errors import InputError
from duonlp.tasks.base import Example, check_bool, check_string
from duonlp.tasks.text2text_generation import Source, Text2TextGenerationOptions, Text2TextGenerationTask

MIN_REDUCTION = 0.1
"""Fraction by which a round must shorten a document for another round to follow; this bounds the number of rounds."""


@dataclass(frozen=True)
class LongDocumentOptions(Text2TextGenerationOptions):
    """The options of Text2TextGenerationOptions, and the attributes below.

    Attributes:
        long_documents: "error", "truncate", or "chunk", which splits a text between sentences into parts that fit.
        return_chunks: With "chunk", add "chunks" to the result: for each round, the parts as dicts of "text" and its result.
        language: Language of the sentences as an ISO 639 code (default: "en").
    """

    return_chunks: bool = False
    language: str | None = None

    LONG_DOCUMENTS = ("error", "truncate", "chunk")

    def __post_init__(self) -> None:
        super().__post_init__()
        check_bool("return_chunks", self.return_chunks)
        check_string("language", self.language, optional=True)


LongDocumentOptionsT = TypeVar("LongDocumentOptionsT", bound=LongDocumentOptions)


class LongDocumentTask(Text2TextGenerationTask[LongDocumentOptionsT]):
    """Base of tasks that can read a document in parts.

    Attributes:
        recursive: Whether the joined results of the parts are read again until they fit in one part.
    """

    Options = LongDocumentOptions
    remedy = 'shorten it, or pass long_documents="truncate" or "chunk"'
    recursive = False

    def check_changes(self, options: LongDocumentOptionsT, changes: Mapping[str, Any], of_call: bool) -> None:
        super().check_changes(options, changes, of_call)
        for name in ("return_chunks", "language"):
            if of_call and changes.get(name) and options.long_documents != "chunk":
                raise InputError(
                    f"{name}={changes[name]!r} has no effect with long_documents={options.long_documents!r}; pass "
                    'long_documents="chunk", or omit it'
                )

    def make_examples(
        self, ids: list[int], source: Source, options: LongDocumentOptionsT, new: int, seen: Counter[tuple[int, ...]]
    ) -> list[Example]:
        if options.long_documents != "chunk":
            return super().make_examples(ids, source, options, new, seen)
        limit = self.source_limit(options)
        if limit is None:
            raise InputError(
                f"{self.name}: neither the model nor the tokenizer limits the source length; pass max_source_length with "
                "long_documents='chunk'"
            )
        if len(ids) <= limit:
            return [self.make_example(ids, source, options, new, seen)]

        def count(texts: Sequence[str]) -> list[int]:
            return [len(row) for row in self.encode_sources(texts, options)]

        language = options.language or self.sentence_language(options)
        chunks = split_document(source.text, limit, count, language, f"{self.name}: input {source.number}")
        rows = self.encode_sources(chunks, options)
        return [
            self.make_example(row, Source(chunk, source.number, source.rounds), options, new, seen)
            for chunk, row in zip(chunks, rows, strict=True)
        ]

    def sentence_language(self, options: LongDocumentOptionsT) -> str:
        """Return the language of sources if the option ``language`` is not set."""
        return "en"

    def next_round(
        self, item: Any, examples: Sequence[Example], outputs: Sequence[dict[str, Any]], options: LongDocumentOptionsT
    ) -> list[Example] | None:
        if not self.recursive or len(examples) == 1:
            return None
        source = examples[0].state
        text = " ".join(part for part in self.part_texts(outputs, 0, options) if part)
        if not text:
            return None
        overhead = self.overhead(options)
        before = sum(example.length - overhead for example in examples)
        ids = self.encode_sources([text], options)[0]
        if len(ids) - overhead > before * (1 - MIN_REDUCTION):
            warnings.warn(
                f"{self.name}: input {source.number} had {before} tokens and the joined results of its {len(examples)} parts "
                f"have {len(ids) - overhead}; they are not shortened further: pass a lower max_length",
                stacklevel=4,
            )
            return None
        rounds = (*source.rounds, self.chunks(examples, outputs, options))
        return self.make_examples(
            ids, Source(text, source.number, rounds), options, self.new_tokens(options), Counter()
        )

    def part_texts(self, outputs: Sequence[dict[str, Any]], number: int, options: LongDocumentOptionsT) -> list[str]:
        """Return the generated text of each part; ``number`` selects one of its num_return_sequences texts."""
        return [self.text(output["new"][number].tolist(), options).strip() for output in outputs]

    def chunks(
        self, examples: Sequence[Example], outputs: Sequence[dict[str, Any]], options: LongDocumentOptionsT
    ) -> tuple[dict[str, str], ...]:
        """Return the parts of a round, each with its generated text."""
        texts = self.part_texts(outputs, 0, options)
        return tuple(
            {"text": example.state.text, f"{self.result_name}_text": text}
            for example, text in zip(examples, texts, strict=True)
        )

    def decode(
        self, item: Any, examples: Sequence[Example], outputs: Sequence[dict[str, Any]], options: LongDocumentOptionsT
    ) -> list[dict[str, Any]]:
        if len(examples) == 1:
            results, rounds = super().decode(item, examples, outputs, options), examples[0].state.rounds
        else:
            results = [self.join_parts(outputs, number, options) for number in range(len(outputs[0]["new"]))]
            rounds = (*examples[0].state.rounds, self.chunks(examples, outputs, options))
        if options.return_chunks:
            results = [result | {"chunks": [list(chunks) for chunks in rounds]} for result in results]
        return results

    def join_parts(
        self, outputs: Sequence[dict[str, Any]], number: int, options: LongDocumentOptionsT
    ) -> dict[str, Any]:
        """Join the generated texts of all parts to one result; see :meth:`part_texts`."""
        if options.return_tensors:
            ids = [token for output in outputs for token in output["new"][number].tolist()]
            return {f"{self.result_name}_token_ids": [self.start_id(options), *ids]}
        return {
            f"{self.result_name}_text": " ".join(part for part in self.part_texts(outputs, number, options) if part)
        }


def split_document(
    text: str, limit: int, count: Callable[[Sequence[str]], list[int]], language: str = "en", where: str = "the text"
) -> list[str]:
    """Split a text between sentences into parts of similar length that fit.

    A sentence that is too long for a part is split, if possible between words.

    Args:
        text: The text.
        limit: Maximum number of tokens of a part.
        count: Function from texts to the number of tokens of each, including prefix and special tokens.
        language: Language of the text as an ISO 639 code.
        where: Name of the text, for error messages.

    Returns:
        The parts in order; joined by spaces they are the text, up to whitespace.

    Raises:
        InputError: not even one character fits.
        MissingExtraError: sentencex is not installed.
    """
    from duonlp.util.sentences import split_sentences

    overhead = count([""])[0]
    room, sentences = limit - overhead, split_sentences(text, language)
    while room > 0:
        pieces = sentences
        sizes = _sizes(pieces, count, overhead)
        if max(sizes) > room:
            pieces = [
                piece
                for sentence, size in zip(sentences, sizes, strict=True)
                for piece in (
                    [sentence] if size <= room else split_sentence(sentence, room, lambda t: count([t])[0] - overhead)
                )
            ]
            sizes = _sizes(pieces, count, overhead)
        chunks = [" ".join(pieces[start:end]) for start, end in pack(sizes, max(room, *sizes))]
        excess = max(count(chunks)) - limit
        if excess <= 0:
            return chunks
        room -= excess  # joined sentences can have a few tokens more than separate ones
    raise InputError(
        f"{where} cannot be split into parts of {limit} tokens, {overhead} of which are prefix and special tokens; raise "
        "the limit"
    )


def _sizes(pieces: Sequence[str], count: Callable[[Sequence[str]], list[int]], overhead: int) -> list[int]:
    return [max(size - overhead, 1) for size in count(pieces)]


def pack(sizes: Sequence[int], limit: int) -> list[tuple[int, int]]:
    """Partition adjacent items into the fewest packs of at most ``limit``, and minimize the size of the largest pack.

    This avoids a small last pack, for which a model would generate about as much text as for a full one.

    Args:
        sizes: Size of each item, at most ``limit``.
        limit: Maximum sum of a pack's sizes.

    Returns:
        (first, end) indices of each pack.
    """
    packs = _pack(sizes, limit)
    low, high = max(sizes), limit
    while low < high:
        middle = (low + high) // 2
        if len(_pack(sizes, middle)) == len(packs):
            high = middle
        else:
            low = middle + 1
    return _pack(sizes, high)


def _pack(sizes: Sequence[int], limit: int) -> list[tuple[int, int]]:
    packs, start, total = [], 0, 0
    for i, size in enumerate(sizes):
        if total and total + size > limit:
            packs.append((start, i))
            start, total = i, 0
        total += size
    return [*packs, (start, len(sizes))]


def split_sentence(sentence: str, room: int, count: Callable[[str], int]) -> list[str]:
    """Split a sentence into pieces of at most ``room`` tokens, or of one character if that has more.

    A piece ends between words if there is a space in its second half.

    Args:
        sentence: The sentence.
        room: Maximum number of tokens of a piece.
        count: Function from a text to its number of tokens.
    """
    pieces = []
    while sentence:
        # Search for the longest prefix that fits, in characters.
        fits, fails = 1, min(4 * room, len(sentence)) + 1
        while fails <= len(sentence) and count(sentence[:fails]) <= room:
            fits, fails = fails, min(2 * fails, len(sentence) + 1)
        if fails > len(sentence) and count(sentence) <= room:
            fits = len(sentence)
        while fits < len(sentence) and fails - fits > 1:
            middle = (fits + fails) // 2
            if count(sentence[:middle]) <= room:
                fits = middle
            else:
                fails = middle
        if fits < len(sentence):
            space = sentence.rfind(" ", fits // 2, fits + 1)
            fits = space if space > 0 else fits
        pieces.append(sentence[:fits].strip())
        sentence = sentence[fits:].lstrip()
    return [piece for piece in pieces if piece]
