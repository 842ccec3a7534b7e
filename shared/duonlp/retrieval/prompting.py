"""Answer questions with any generator: numbered passages in its prompt, and the passages that its answer cites."""

import re
import string
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from duonlp.errors import InputError
from duonlp.retrieval.document import Document
from duonlp.tasks.base import check_bool, check_int, check_string, check_text, describe
from duonlp.tasks.generation import GenerationTask
from duonlp.tasks.text_generation import TextGenerationTask
from duonlp.util.tokenization import tokenize

if TYPE_CHECKING:
    from duonlp.pipelines import Pipeline

TEMPLATE = """Answer the question with the passages below only. After each statement, cite the number of its passage, such as [1].

{passages}

Question: {question}
Answer:"""

PASSAGE = "[{number}] {text}"

CITATION = re.compile(r"\[\s*([0-9]{1,9}(?:\s*[,;\u2013-]\s*[0-9]{1,9})*)\s*\]")
"""Numbers in brackets: [1], [1, 3] or [2-4]."""

MIN_WORDS = 5
"""Minimum number of words to which a passage is shortened; fewer say too little to be worth citing."""


@dataclass(frozen=True)
class GeneratedAnswer:
    """An answer that a model wrote, and the documents that it was given.

    Attributes:
        answer: The generated text, with its citations.
        documents: The documents in the prompt; number n is ``documents[n - 1]``.
        citations: Numbers of the documents that the answer cites, each once, in the order in which they are cited.
        unknown_citations: Numbers that the answer cites and that no document has.
        prompt: The text that the model read.
        shortened: Id of the document of which only the beginning fit into the prompt, or None.
        dropped: Ids of the documents that did not fit into the prompt.
    """

    answer: str
    documents: list[Document]
    citations: tuple[int, ...] = ()
    unknown_citations: tuple[int, ...] = ()
    prompt: str = field(default="", repr=False)
    shortened: str | None = None
    dropped: tuple[str, ...] = ()

    @property
    def document_ids(self) -> list[str]:
        """Ids of the documents that the answer cites."""
        return [self.documents[number - 1].id for number in self.citations]


@dataclass(frozen=True)
class FittedPrompt:
    """A prompt that fits into a model's context window, and how; see :class:`GeneratedAnswer`."""

    text: str
    documents: list[Document]
    shortened: str | None
    dropped: tuple[str, ...]


class PromptGenerator:
    """Retrieval augmentation by prompt, for a text-generation or text2text-generation pipeline.

    The prompt holds as many documents as fit beside the question and the new tokens, best first; the first one that does not
    fit is cut to its beginning, and the result says so.

    Args:
        pipe: A pipeline of either engine.
        template: The prompt, with the fields {passages} and {question}.
        passage: One passage, with the fields {number} and {text}, and optionally {title}, the document's ``meta["title"]``.
        separator: Text between passages.
        max_new_tokens: Maximum length of an answer in tokens.
        max_prompt_tokens: Maximum length of a prompt in tokens; None for all that the model has room for.
        chat: Whether to send the prompt as a user's message in the tokenizer's chat template; None if it has one.
        options: Options of the pipeline's task, such as num_beams or do_sample.

    Raises:
        InputError: The pipeline does not generate text, a template lacks a field or has an unknown one, or an option is
            invalid.
    """

    def __init__(
        self,
        pipe: "Pipeline",
        *,
        template: str = TEMPLATE,
        passage: str = PASSAGE,
        separator: str = "\n",
        max_new_tokens: int = 64,
        max_prompt_tokens: int | None = None,
        chat: bool | None = None,
        **options: Any,
    ) -> None:
        task = getattr(pipe, "task", None)
        if not isinstance(task, GenerationTask):
            name = getattr(task, "name", None) or type(pipe).__name__
            raise InputError(f"{name} does not generate text; pass a text-generation or text2text-generation pipeline")
        _check_template("template", template, ("passages", "question"))
        _check_template("passage", passage, ("number", "text"), ("title",))
        check_string("separator", separator)
        check_int("max_new_tokens", max_new_tokens, minimum=1)
        check_int("max_prompt_tokens", max_prompt_tokens, minimum=1, optional=True)
        check_bool("chat", chat, optional=True)
        if "num_return_sequences" in options and options["num_return_sequences"] != 1:
            raise InputError(
                f"num_return_sequences is {options['num_return_sequences']!r}, but a prompt gets one answer; omit it"
            )
        has_chat = bool(getattr(pipe.tokenizer, "chat_template", None))
        if chat and not has_chat:
            raise InputError("chat=True, but the tokenizer has no chat template; omit it")
        self.pipe, self.task = pipe, task
        self.template, self.passage, self.separator = template, passage, separator
        self.chat = has_chat if chat is None else bool(chat)
        self.max_prompt_tokens = max_prompt_tokens
        self._options = options | {"max_new_tokens": max_new_tokens, "num_return_sequences": 1, "return_tensors": False}
        if isinstance(task, TextGenerationTask):
            self._options |= {"return_full_text": False}
            if self.chat:  # the template has the special tokens
                self._options |= {"add_special_tokens": False}
        self._limit, self._resolved = self._prompt_limit()

    def generate(self, query: str, documents: Sequence[Document]) -> GeneratedAnswer:
        """Answer a question from documents.

        Args:
            query: The question.
            documents: Documents, best first.

        Raises:
            InputError: The question is empty or too long for the model, or there are no documents.
        """
        prompt = self.fit_prompt(query, documents)
        (result,) = self.pipe(prompt.text, **self._options)
        answer = next(value for name, value in result.items() if name.endswith("_text")).strip()
        citations, unknown = parse_citations(answer, len(prompt.documents))
        return GeneratedAnswer(
            answer, prompt.documents, citations, unknown, prompt.text, prompt.shortened, prompt.dropped
        )

    def fit_prompt(self, query: str, documents: Sequence[Document]) -> FittedPrompt:
        """Return the prompt with as many of the documents as the model has room for; see generate."""
        check_text(query, "the question")
        documents = _check_documents(documents)
        count = largest(len(documents), lambda n: self._fits(self._prompt(query, documents[:n])))
        shortened, used = None, documents[:count]
        if count < len(documents):
            words = [match.end() for match in re.finditer(r"\S+", documents[count].content)][: self._limit]

            def first_words(n: int) -> list[Document]:
                content = documents[count].content[: words[n - 1]] + " ..."
                return [*used, Document(content, documents[count].meta, documents[count].id)]

            kept = largest(len(words), lambda n: not n or self._fits(self._prompt(query, first_words(n))))
            if kept >= MIN_WORDS:
                shortened, used = documents[count].id, first_words(kept)
        if not used:
            raise InputError(
                f"the question and the prompt around it take {self.count_tokens(self._prompt(query, []))} of the "
                f"{self._limit} tokens that a prompt can have, which leaves no room for a passage; shorten the question or "
                "the template, lower max_new_tokens, or use a model with a longer context window"
            )
        dropped = tuple(document.id for document in documents[len(used) :])
        originals = documents[: len(used)]
        return FittedPrompt(self._prompt(query, used), originals, shortened, dropped)

    def count_tokens(self, prompt: str) -> int:
        """Return the number of tokens that the model reads for a prompt."""
        options = self._resolved
        if isinstance(self.task, TextGenerationTask):
            special = {} if options.add_special_tokens is None else {"add_special_tokens": options.add_special_tokens}
            text = self.task.prefix(options) + prompt
            return len(tokenize(self.task.tokenizer, text, verbose=False, **special)["input_ids"])
        return len(self.task.encode_sources([prompt], options)[0])  # type: ignore[attr-defined]

    def _prompt_limit(self) -> tuple[int, Any]:
        """Return the maximum number of tokens of a prompt, and the options of the task."""
        task, options = self.task, self.task.options(self.pipe.options, **self._options)
        if isinstance(task, TextGenerationTask):
            limits = [task.max_positions(options), *filter(None, [task.limit()])]
            limit = min(limits) - self._options["max_new_tokens"]
            if limit < 1:
                raise InputError(
                    f"max_new_tokens is {self._options['max_new_tokens']}, but the model has positions for {min(limits)} tokens, "
                    "prompt included; lower it"
                )
        else:
            limit = task.source_limit(options) or task.config.max_length  # type: ignore[attr-defined]
        return min([limit, *filter(None, [self.max_prompt_tokens])]), options

    def _fits(self, prompt: str) -> bool:
        return self.count_tokens(prompt) <= self._limit

    def _prompt(self, query: str, documents: Sequence[Document]) -> str:
        passages = self.separator.join(
            self.passage.format(number=i, text=document.content, title=document.meta.get("title") or "")
            for i, document in enumerate(documents, 1)
        )
        prompt = self.template.format(passages=passages, question=query)
        if not self.chat:
            return prompt
        message = [{"role": "user", "content": prompt}]
        return self.pipe.tokenizer.apply_chat_template(message, tokenize=False, add_generation_prompt=True)


def parse_citations(answer: str, count: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Return the numbers from 1 to ``count`` that a text cites, and the other ones, each once and in order.

    Args:
        answer: Text with citations such as [1], [1, 3] or [2-4].
        count: Number of passages.
    """
    numbers: dict[int, None] = {}
    for match in CITATION.finditer(answer):
        for part in re.split(r"\s*[,;]\s*", match[1]):
            first, *_, last = [*map(int, re.split(r"\s*[\u2013-]\s*", part))] * 2
            numbers |= dict.fromkeys(range(first, min(last, count) + 1)) | {first: None, last: None}
    known = tuple(number for number in numbers if 1 <= number <= count)
    return known, tuple(number for number in numbers if not 1 <= number <= count)


def largest(maximum: int, fits: Any) -> int:
    """Return the largest n up to ``maximum`` for which ``fits(n)``, which must not hold again after it does not; or 0."""
    low, high = 0, maximum
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if fits(middle) else (low, middle - 1)
    return low


def _check_template(name: str, template: Any, required: Sequence[str], optional: Sequence[str] = ()) -> None:
    """Raise InputError unless a format string has the required fields and no unknown ones."""
    check_string(name, template)
    expected = ", ".join(f"{{{field}}}" for field in (*required, *optional))
    try:
        fields = {field for _, field, _, _ in string.Formatter().parse(template) if field is not None}
    except ValueError as error:
        raise InputError(
            f"{name} is {describe(template)}: {error}; it has the fields {expected}, and a brace is written twice"
        ) from None
    missing, unknown = set(required) - fields, fields - {*required, *optional}
    if missing or unknown:
        problem = f"lacks {{{min(missing)}}}" if missing else f"has the unknown field {{{min(unknown)}}}"
        raise InputError(f"{name} {problem}; its fields are {expected}, and a brace in its text is written twice")


def _check_documents(documents: Any) -> list[Document]:
    """Return documents as a list; raise InputError if there are none or one is no Document."""
    if isinstance(documents, (str, Document)) or not isinstance(documents, Sequence) or not documents:
        raise InputError(f"the documents are {describe(documents)}; expected a list of at least one Document")
    for document in documents:
        if not isinstance(document, Document):
            raise InputError(f"a document is {describe(document)}; expected a duonlp.retrieval.Document")
    return list(documents)
