"""Translation: a text in another language, by models of one pair of languages or of many."""

import contextlib
import re
import warnings
from dataclasses import dataclass, replace
from typing import ClassVar

from duonlp.errors import InputError
from duonlp.tasks.base import check_string
from duonlp.tasks.long_documents import LongDocumentOptions, LongDocumentTask

PAIR = re.compile(r"translation_(.+)_to_(.+)")
"""The task's name with a pair of languages, such as "translation_en_to_fr"."""

NLLB_CODE = re.compile(r"[a-z]{3}_[A-Z][a-z]{3}")


@dataclass(frozen=True)
class TranslationOptions(LongDocumentOptions):
    """The options of LongDocumentOptions, and besides:

    src_lang, tgt_lang: the languages, as the model's tokenizer calls them ("en_XX" of mBART, "en" of M2M100); those of the
        task's name when None. ``language``, for sentences, is src_lang's when None.
    """

    src_lang: str | None = None
    tgt_lang: str | None = None

    source_code: ClassVar[str | None] = None  # the tokenizer's own for src_lang; the task sets it
    target_code: ClassVar[str | None] = None

    def __post_init__(self):
        super().__post_init__()
        check_string("src_lang", self.src_lang, optional=True)
        check_string("tgt_lang", self.tgt_lang, optional=True)


class TranslationTask(LongDocumentTask):
    """Text -> [{"translation_text"}], as TranslationPipeline of Transformers 4.57; see Text2TextGenerationTask.

    How a model is told the languages is its tokenizer's matter: mBART's, NLLB's and M2M100's mark the source with src_lang, and
    the decoder is made to begin with tgt_lang; Marian's of several targets want ">>fr<<" before the text; T5 has a
    prefix for each pair in task_specific_params; others are of one pair. The name "translation_en_to_fr" stands for
    src_lang="en" and tgt_lang="fr", and for the task_specific_params of that name, of which the first pair holds, with a
    warning, where no language is named; "en" is also understood by models that have just one "en_XX". A document read with
    ``long_documents="chunk"`` gives the translations of its parts, joined.

    Raises:
        InputError: a language that the model does not know; languages for a model that is told none; or only one of the
            two where both are needed.
    """

    name = "translation"
    result_name = "translation"
    Options = TranslationOptions

    def __init__(self, *arguments, **keywords):
        super().__init__(*arguments, **keywords)
        self.languages = languages(self.tokenizer)
        codes = getattr(self.tokenizer, "supported_language_codes", None) or []
        self.targets = [code.strip("><") for code in codes]  # of Marian
        named = PAIR.fullmatch(self.name)
        self.named = named.groups() if named else (None, None)
        stored = self.config.extra.get("task_specific_params") or {}
        self.stored_names = [name for name in stored if PAIR.fullmatch(name)]

    # -- options ---------------------------------------------------------------------------------------------------

    def pair(self, options: TranslationOptions) -> tuple[str | None, str | None]:
        """Source and target, as the caller calls them."""
        if options.src_lang is None and options.tgt_lang is None:
            return self.named
        return options.src_lang, options.tgt_lang

    def specific_name(self, options):
        source, target = self.pair(options)
        name = self.name if source is None or target is None else f"translation_{source}_to_{target}"
        unnamed = self.name == "translation" and (self.languages or source is target is None)
        return self.stored_names[0] if unnamed and self.stored_names and name not in self.stored_names else name

    def complete(self, config, options):
        source, target = self.pair(options)
        if self.languages:
            if source is None or target is None:
                known = self.tokenizer.init_kwargs
                source, target = source or known.get("src_lang"), target or known.get("tgt_lang")
            if source is not None:
                object.__setattr__(options, "source_code", self.code("src_lang", source))
            if target is not None:
                object.__setattr__(options, "target_code", self.code("tgt_lang", target))
            if target is not None and "forced_bos_token_id" not in options.given:
                config = replace(config, forced_bos_token_id=self.languages[options.target_code])
        elif not self.targets:
            self.check_pair(source, target, options)
            if source is None and target is None and self.stored_names:
                warnings.warn(
                    f"translation names no languages, and {self.specific_name(options)} holds, the first of config.json's "
                    "task_specific_params; ask for the one you mean",
                    stacklevel=6,
                )
        elif options.tgt_lang is not None and target not in self.targets:
            raise InputError(f"tgt_lang {target!r} is not a language of this model: {', '.join(self.targets)}")
        return super().complete(config, options)

    def prefix(self, options):
        target = self.pair(options)[1]
        return (f">>{target}<< " if target in self.targets else "") + super().prefix(options)

    def code(self, name: str, language: str) -> str:
        """The tokenizer's code for a language."""
        close = [code for code in self.languages if code.startswith(f"{language}_")]
        found = [language] if language in self.languages else close
        if len(found) != 1:
            raise InputError(f"{name} {language!r} is not a language of this model: {', '.join(self.languages)}")
        return found[0]

    def check_pair(self, source: str | None, target: str | None, options: TranslationOptions) -> None:
        """Languages for a model that is not told any: they must be its own."""
        own = getattr(self.tokenizer, "source_lang", None), getattr(self.tokenizer, "target_lang", None)
        own = own if all(isinstance(code, str) for code in own) else (None, None)
        wrong = [(asked, code) for asked, code in zip((source, target), own, strict=True) if asked not in (None, code)]
        if own != (None, None) and wrong:
            raise InputError(f"this model translates from {own[0]!r} to {own[1]!r}, not {source!r} to {target!r}")
        named = options.src_lang is None and options.tgt_lang is None
        if own != (None, None) or (named and (source is None or not self.stored_names)):
            return  # a name is no more than a name where the model has one pair
        pairs = [PAIR.fullmatch(name).groups() for name in self.stored_names]
        if (source, target) not in pairs and (options.prefix is None or not pairs):
            known = ", ".join(f"{a} to {b}" for a, b in pairs)
            raise InputError(
                f"src_lang={source!r}, tgt_lang={target!r}: "
                + (
                    f"this model translates {known}; ask for those, or pass the prefix that it was trained with"
                    if known
                    else "this model is not told languages; leave them out"
                )
            )

    # -- text to arrays --------------------------------------------------------------------------------------------

    def encode(self, items, options, first=0):
        if self.languages and (options.source_code is None or options.target_code is None):
            raise InputError(
                f"{self.name} needs src_lang and tgt_lang with this model, which has several languages: "
                f"{', '.join(self.languages)}"
            )
        return super().encode(items, options, first)

    @contextlib.contextmanager
    def language(self, options):
        if options.source_code is None:
            yield
            return
        before = self.tokenizer.src_lang
        self.tokenizer.src_lang = options.source_code
        try:
            yield
        finally:
            self.tokenizer.src_lang = before

    def sentence_language(self, options):
        source = self.pair(options)[0] or getattr(self.tokenizer, "source_lang", None) or "en"
        return re.split("[_-]", source)[0]

    def check_lengths(self, examples, options):
        config = options.resolved
        if config.max_new_tokens is not None or config.max_length is None:
            return
        long = next((example for example in examples if example.length > 0.9 * config.max_length), None)
        if long is not None:
            warnings.warn(
                f"input {long.state.number} has {long.length} tokens and max_length is {config.max_length}: its translation "
                "may be cut off; raise max_length",
                stacklevel=5,
            )


def languages(tokenizer) -> dict[str, int]:
    """Code to id of the languages that a tokenizer marks sources with; none for most."""
    codes = getattr(tokenizer, "lang_code_to_id", None)
    if codes:
        return dict(codes)
    if not hasattr(tokenizer, "src_lang"):
        return {}
    return {token: i for token, i in tokenizer.get_added_vocab().items() if NLLB_CODE.fullmatch(token)}
