"""Documents longer than a model reads: cut between sentences into parts that fit, and what is written of each put together."""

import warnings
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from duonlp.errors import InputError
from duonlp.tasks.base import check_bool, check_string
from duonlp.tasks.text2text_generation import Source, Text2TextGenerationOptions, Text2TextGenerationTask

LEAST_PROGRESS = 0.1
"""The share by which a round must shorten a document to be worth another: less, and rounds would hardly end."""


@dataclass(frozen=True)
class LongDocumentOptions(Text2TextGenerationOptions):
    """The options of Text2TextGenerationOptions, and besides:

    long_documents: "error", "truncate", or "chunk", which cuts a text between sentences into parts that fit the source.
    return_chunks: with "chunk", the result's "chunks" hold for each round the parts, as {"text", and what was written of it}.
    language: of the sentences, an ISO 639 code; English when nothing says.
    """

    return_chunks: bool = False
    language: str | None = None

    LONG_DOCUMENTS = ("error", "truncate", "chunk")

    def __post_init__(self):
        super().__post_init__()
        check_bool("return_chunks", self.return_chunks)
        check_string("language", self.language, optional=True)


class LongDocumentTask(Text2TextGenerationTask):
    """Base of the tasks that can read a document in parts."""

    Options = LongDocumentOptions
    remedy = 'shorten it, or pass long_documents="truncate" or "chunk"'
    recursive = False  # what is written of the parts is read again, until it fits

    def rows_of(self, ids, source, options, new, seen):
        if options.long_documents != "chunk":
            return super().rows_of(ids, source, options, new, seen)
        limit = self.source_limit(options)
        if limit is None:
            raise InputError(
                f"{self.name}: neither the model nor its tokenizer says how long a source may be; pass max_source_length "
                "with long_documents='chunk'"
            )
        if len(ids) <= limit:
            return [self.row(ids, source, options, new, seen)]

        def count(texts: Sequence[str]) -> list[int]:
            return [len(row) for row in self.sources(texts, options)]

        language = options.language or self.sentence_language(options)
        chunks = split_document(source.text, limit, count, language, f"{self.name}: input {source.number}")
        rows = self.sources(chunks, options)
        return [
            self.row(row, Source(chunk, source.number, source.rounds), options, new, seen)
            for chunk, row in zip(chunks, rows, strict=True)
        ]

    def sentence_language(self, options: LongDocumentOptions) -> str:
        """The language of sources, where the options do not say it."""
        return "en"

    def again(self, item, examples, outputs, options):
        if not self.recursive or len(examples) == 1:
            return None
        source = examples[0].state
        text = " ".join(part for part in self.parts(outputs, 0, options) if part)
        if not text:
            return None
        taken = self.overhead(options)
        before = sum(example.length - taken for example in examples)
        ids = self.sources([text], options)[0]
        if len(ids) - taken > before * (1 - LEAST_PROGRESS):
            warnings.warn(
                f"{self.name}: input {source.number} had {before} tokens, and what was written of its {len(examples)} parts "
                f"has {len(ids) - taken}: it does not get shorter, and stays as it is; pass a lower max_length",
                stacklevel=4,
            )
            return None
        rounds = (*source.rounds, self.chunks(examples, outputs, options))
        return self.rows_of(ids, Source(text, source.number, rounds), options, self.new_tokens(options), Counter())

    def parts(self, outputs: Sequence[dict], number: int, options: LongDocumentOptions) -> list[str]:
        """What was written of each part, in the text of that number."""
        return [self.text(output["new"][number].tolist(), options).strip() for output in outputs]

    def chunks(self, examples, outputs, options) -> tuple[dict[str, str], ...]:
        """The parts of a round, each with what was written of it."""
        written = self.parts(outputs, 0, options)
        return tuple(
            {"text": example.state.text, f"{self.result_name}_text": text}
            for example, text in zip(examples, written, strict=True)
        )

    def decode(self, item, examples, outputs, options):
        if len(examples) == 1:
            results, rounds = super().decode(item, examples, outputs, options), examples[0].state.rounds
        else:
            results = [self.joined(outputs, number, options) for number in range(len(outputs[0]["new"]))]
            rounds = (*examples[0].state.rounds, self.chunks(examples, outputs, options))
        if options.return_chunks:
            results = [result | {"chunks": [list(chunks) for chunks in rounds]} for result in results]
        return results

    def joined(self, outputs: Sequence[dict], number: int, options: LongDocumentOptions) -> dict:
        """What was written of all parts as one result."""
        if options.return_tensors:
            ids = [token for output in outputs for token in output["new"][number].tolist()]
            return {f"{self.result_name}_token_ids": [self.start_id(options), *ids]}
        return {f"{self.result_name}_text": " ".join(part for part in self.parts(outputs, number, options) if part)}


def split_document(
    text: str, limit: int, count: Callable[[Sequence[str]], list[int]], language: str = "en", where: str = "the text"
) -> list[str]:
    """A text in parts that fit, cut between sentences, about as long as one another.

    A sentence that is longer than a part is cut into several, between words where it has some.

    Args:
        limit: tokens that a part may have.
        count: texts -> how many tokens each has as a source, prefix and special tokens included.
        language: of the text, an ISO 639 code.
        where: what error messages call the text.

    Returns:
        the parts in order, joined by spaces the text, but for white space.

    Raises:
        InputError: not even a character fits.
        MissingExtraError: sentencex is not installed.
    """
    from duonlp.util.sentences import split_sentences

    taken = count([""])[0]
    room, sentences = limit - taken, split_sentences(text, language)
    while room > 0:
        pieces = sentences
        sizes = _sizes(pieces, count, taken)
        if max(sizes) > room:
            pieces = [
                piece
                for sentence, size in zip(sentences, sizes, strict=True)
                for piece in ([sentence] if size <= room else cut(sentence, room, lambda t: count([t])[0] - taken))
            ]
            sizes = _sizes(pieces, count, taken)
        chunks = [" ".join(pieces[start:end]) for start, end in pack(sizes, max(room, *sizes))]
        excess = max(count(chunks)) - limit
        if excess <= 0:
            return chunks
        room -= excess  # joined, sentences can have a few tokens more than apart
    raise InputError(f"{where} cannot be cut into parts of {limit} tokens, of which {taken} are no text; allow more")


def _sizes(pieces: Sequence[str], count, taken: int) -> list[int]:
    return [max(size - taken, 1) for size in count(pieces)]


def pack(sizes: Sequence[int], limit: int) -> list[tuple[int, int]]:
    """Neighbours in as few packs as sums up to ``limit`` allow, the largest pack as small as so many packs allow.

    So no pack is a small rest, which a model would write about as much as about a full one.

    Args:
        sizes: each at most ``limit``.

    Returns:
        each pack's first index, and the one after its last.
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


def cut(sentence: str, room: int, count: Callable[[str], int]) -> list[str]:
    """A sentence in pieces of at most ``room`` tokens, or of one character; between words if that is not far back."""
    pieces = []
    while sentence:
        fits, fails = 1, min(4 * room, len(sentence)) + 1  # beginnings of so many characters
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
