"""Translate texts to another language and back."""

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from duonlp.augmentation.augmenter import check_request
from duonlp.augmentation.synonyms import protection_settings
from duonlp.augmentation.words import Protection
from duonlp.data.rows.length_batches import cache_key
from duonlp.data.rows.manifest import tokenizer_hash
from duonlp.errors import InputError
from duonlp.pipelines.identity import weights_hash
from duonlp.pipelines.pipeline import Pipeline
from duonlp.tasks.base import check_bool, check_int, describe
from duonlp.tasks.text2text_generation import Text2TextGenerationTask
from duonlp.typing import Tokenizer
from duonlp.util.sentences import split_sentences

_LINES = re.compile(r"(\r\n|\r|\n)")
_BODY = re.compile(
    r"(?s)((?:\s*(?:[>#*+\u2022-]+|\d+[.)])(?=\s))*\s*)(.*?)(\s*)"
)  # marks of lists, headings and quotations


@dataclass(frozen=True, eq=False)
class BackTranslation:
    """Translates each sentence to another language and back (Sennrich et al. 2016, https://arxiv.org/abs/1511.06709; as
    augmentation in Xie et al. 2020, https://arxiv.org/abs/1904.12848).

    Copy number c of a text comes from the c-th best of the first translations of each sentence, or from the c-th sample, whose
    most likely translation back is taken. Line breaks, list marks, code blocks and the spaces between sentences stay. A sentence
    also stays where one of its protected parts, such as a name in backticks, does not survive the two translations. A sentence
    that is longer than a model reads is translated in parts.

    Attributes:
        forward: Pipeline "translation" or "text2text-generation" to the other language.
        backward: Pipeline from it.
        sampling: Whether first translations are sampled, for more varied copies; otherwise they are the best ones of beam search.
        beams: Number of beams of both translations, at least the number of copies unless `sampling`.
        language: Language of the texts, for splitting sentences.
        forward_options: Further options of the first pipeline, such as ``{"tgt_lang": "de", "top_k": 50}``.
        backward_options: Further options of the second.
        protect: Parts of a text that are never changed.
        names: Names of the two models for :func:`cached`; None for hashes of their files.

    Raises:
        InputError: A pipeline has another task, or an option is unknown or out of range.
    """

    forward: Pipeline
    backward: Pipeline
    sampling: bool = False
    beams: int = 4
    language: str = "en"
    forward_options: Mapping[str, Any] = field(default_factory=dict)
    backward_options: Mapping[str, Any] = field(default_factory=dict)
    protect: Protection = field(default_factory=Protection)
    names: tuple[str, str] | None = None

    def __post_init__(self) -> None:
        for name in ("forward", "backward"):
            pipe = getattr(self, name)
            if not isinstance(pipe, Pipeline) or not isinstance(pipe.task, Text2TextGenerationTask):
                raise InputError(
                    f"{name} is {pipe!r}; pass a pipeline of an engine, such as "
                    'jaxnlp.pipeline("translation", "Helsinki-NLP/opus-mt-en-de")'
                )
            options = getattr(self, f"{name}_options")
            reserved = ("num_return_sequences", "num_beams", "do_sample", "seed", "return_tensors", "long_documents")
            if not isinstance(options, Mapping) or {*reserved} & {*options}:
                raise InputError(
                    f"{name}_options is {describe(options)}; give a dict of the pipeline's options, without {', '.join(reserved)}"
                )
            pipe.task.options(pipe.options, **options)
        check_bool("sampling", self.sampling)
        check_int("beams", self.beams, minimum=1)
        if self.names is not None and (isinstance(self.names, str) or len(self.names) != 2):
            raise InputError(f"names is {describe(self.names)}; give the names of the two models, or None")
        split_sentences("", self.language)

    def augment(self, texts: Sequence[str], per_text: int = 1, seed: int = 0) -> list[list[str]]:
        """Return `per_text` copies of each text; see :class:`Augmenter`.

        Raises:
            InputError: Beam search has fewer beams than copies are wanted.
        """
        texts = check_request(texts, per_text, seed)
        if not self.sampling and per_text > self.beams:
            raise InputError(
                f"per_text is {per_text}, but beam search has {self.beams} beams; raise beams, or pass sampling=True"
            )
        parts = {text: list(self._parts(text)) for text in dict.fromkeys(texts)}
        sentences = list(dict.fromkeys(part for of_text in parts.values() for part, translate in of_text if translate))
        copies = self._copies(sentences, per_text, seed)

        def joined(text: str, number: int) -> str:
            return "".join(copies[part][number] if translate else part for part, translate in parts[text])

        return [[joined(text, number) for number in range(per_text)] for text in texts]

    def settings(self) -> dict[str, Any]:
        """Return everything that a copy depends on beside its text and seed."""
        pipes = self.forward, self.backward
        return {
            "augmenter": "back-translation", "sampling": self.sampling, "beams": self.beams, "language": self.language,
            "models": list(self.names or map(weights_hash, pipes)),
            "tokenizers": [_tokenizer_hash(pipe.tokenizer) for pipe in pipes],
            "tasks": [pipe.task.name for pipe in pipes],
            "options": [_described(self.forward, self.forward_options), _described(self.backward, self.backward_options)],
            "protect": protection_settings(self.protect),
        }  # fmt: skip

    def _parts(self, text: str) -> Iterator[tuple[str, bool]]:
        """Yield the pieces of a text, and whether each is a sentence to translate."""
        last = 0
        for start, end in [
            *(span for span in self.protect.spans(text) if "\n" in text[slice(*span)]),
            (len(text),) * 2,
        ]:
            for line in _LINES.split(text[last:start]):
                before, body, after = _BODY.fullmatch(line).groups()  # pyrefly: ignore[missing-attribute]
                yield before, False
                yield from self._sentences(body)
                yield after, False
            yield text[start:end], False
            last = end

    def _sentences(self, line: str) -> Iterator[tuple[str, bool]]:
        last = 0
        for sentence in split_sentences(line, self.language, lines=False):
            start = line.find(sentence, last)
            if start < 0:  # its spaces are not those of the line
                break
            yield line[last:start], False
            yield sentence, bool(self.protect.word_spans(sentence))
            last = start + len(sentence)
        yield line[last:], bool(self.protect.word_spans(line[last:]))

    def _copies(self, sentences: Sequence[str], per_text: int, seed: int) -> dict[str, list[str]]:
        options = {"do_sample": True, "num_beams": 1, "seed": seed} if self.sampling else {"num_beams": self.beams}
        options |= {"num_return_sequences": per_text}
        there = _translations(self.forward, sentences, {**self.forward_options, **options})
        unique = list(dict.fromkeys(text for texts in there for text in texts if text.strip()))
        options = {"do_sample": False, "num_beams": self.beams, "num_return_sequences": 1}
        back = _translations(self.backward, unique, {**self.backward_options, **options})
        by_text = {text: found[0] for text, found in zip(unique, back, strict=True)}
        return {
            sentence: [self._checked(sentence, by_text.get(text, "")) for text in texts]
            for sentence, texts in zip(sentences, there, strict=True)
        }

    def _checked(self, sentence: str, copy: str) -> str:
        """Return the copy of a sentence, or the sentence if the copy is empty or lacks a protected part."""
        parts = [sentence[start:end] for start, end in self.protect.spans(sentence)]
        intact = all(copy.count(part) >= parts.count(part) for part in parts)
        return copy.strip() if intact and copy.strip() else sentence


def _described(pipe: Pipeline, options: Mapping[str, Any]) -> list[str]:
    """Return all options of a call, those of the checkpoint included."""
    task, resolved = pipe.task, pipe.task.options(pipe.options, **options)
    assert isinstance(task, Text2TextGenerationTask)
    return [repr(resolved), repr(resolved.resolved), resolved.source_prefix]


def _tokenizer_hash(tokenizer: Tokenizer) -> str:
    if getattr(tokenizer, "is_fast", False):
        return tokenizer_hash(tokenizer)
    return cache_key(sorted(tokenizer.get_vocab().items()), ())


def _translations(pipe: Pipeline, texts: Sequence[str], options: Mapping[str, Any]) -> list[list[str]]:
    """Return the translations of each text, best first; those of the parts of a long text are joined."""
    task, resolved = pipe.task, pipe.task.options(pipe.options, **options)
    assert isinstance(task, Text2TextGenerationTask)
    limit = task.source_limit(resolved)

    def fits(text: str) -> bool:
        return limit is None or len(text) < 4 or len(task.encode_sources([text], resolved)[0]) <= limit

    parts = [list(_split(text, fits)) for text in texts]
    flat = list(dict.fromkeys(part for of_text in parts for part in of_text))
    results = pipe(flat, progress=False, **options) if flat else []
    found = {}
    for part, result in zip(flat, results, strict=True):
        rows = result if isinstance(result, list) else [result]
        found[part] = [row[f"{task.result_name}_text"] for row in rows]
    count = int(options["num_return_sequences"])
    return [[" ".join(found[part][number] for part in of_text) for number in range(count)] for of_text in parts]


def _split(text: str, fits: Any) -> Iterable[str]:
    """Yield a text in parts that fit, cut between words where it has some."""
    if fits(text):
        yield text
        return
    middle = len(text) // 2
    cut = text.rfind(" ", 1, middle + 1)
    cut = middle if cut < 0 or not text[:cut].strip() else cut
    for part in (text[:cut].strip(), text[cut:].strip()):
        if part:
            yield from _split(part, fits)
