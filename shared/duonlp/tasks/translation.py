"""Translation with bilingual and multilingual models."""

import re
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

from duonlp.errors import InputError
from duonlp.generation import GenerationConfig
from duonlp.tasks.base import Example, check_string
from duonlp.tasks.long_documents import LongDocumentOptions, LongDocumentTask
from duonlp.typing import Tokenizer

PAIR = re.compile(r"translation_(.+)_to_(.+)")
"""Task name with a language pair, such as "translation_en_to_fr"."""

NLLB_CODE = re.compile(r"[a-z]{3}_[A-Z][a-z]{3}")
"""Language code of NLLB, such as "eng_Latn"."""


@dataclass(frozen=True)
class TranslationOptions(LongDocumentOptions):
    """The options of LongDocumentOptions, and the attributes below.

    ``language``, the language of the sentences, defaults to that of ``src_lang``.

    Attributes:
        src_lang: Source language in the tokenizer's code ("en_XX" in mBART, "en" in M2M100); default: from the task's name.
        tgt_lang: Target language, likewise.
        source_code: The tokenizer's code of the source language; set by the task when it checks the options.
        target_code: The tokenizer's code of the target language, likewise.
    """

    src_lang: str | None = None
    tgt_lang: str | None = None

    source_code: ClassVar[str | None] = None
    target_code: ClassVar[str | None] = None

    def __post_init__(self) -> None:
        super().__post_init__()
        check_string("src_lang", self.src_lang, optional=True)
        check_string("tgt_lang", self.tgt_lang, optional=True)


class TranslationTask(LongDocumentTask[TranslationOptions]):
    """Text -> [{"translation_text"}], like TranslationPipeline of Transformers 4.57; see Text2TextGenerationTask.

    How languages are specified depends on the model:

    - mBART, NLLB and M2M100: the tokenizer marks the source with src_lang, and the decoder is forced to begin with tgt_lang.
    - Marian with several targets: the text is prefixed with, e.g., ">>fr<<".
    - T5: task_specific_params have a prefix for each pair. If no language is specified, the first pair applies, with a warning.
    - Others translate one pair.

    The name "translation_en_to_fr" implies src_lang="en", tgt_lang="fr" and the task_specific_params of that name. A model
    with exactly one "en_XX" also accepts "en". With ``long_documents="chunk"``, the translations of the parts are joined.

    Raises:
        InputError: the model does not support a language, does not accept languages, or needs both.
    """

    name = "translation"
    result_name = "translation"
    Options = TranslationOptions

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.languages = language_ids(self.tokenizer)
        codes = getattr(self.tokenizer, "supported_language_codes", None) or []
        self.targets = [code.strip("><") for code in codes]  # Marian only
        self.named_pair: tuple[str | None, str | None] = (None, None)
        if (match := PAIR.fullmatch(self.name)) is not None:
            self.named_pair = match[1], match[2]
        stored = self.config.extra.get("task_specific_params") or {}
        self.stored_names = [name for name in stored if PAIR.fullmatch(name)]

    # -- options ---------------------------------------------------------------------------------------------------

    def language_pair(self, options: TranslationOptions) -> tuple[str | None, str | None]:
        """Return the source and target languages as specified by the caller."""
        if options.src_lang is None and options.tgt_lang is None:
            return self.named_pair
        return options.src_lang, options.tgt_lang

    def task_params_name(self, options: TranslationOptions) -> str:
        source, target = self.language_pair(options)
        name = self.name if source is None or target is None else f"translation_{source}_to_{target}"
        unnamed = self.name == "translation" and (self.languages or source is target is None)
        return self.stored_names[0] if unnamed and self.stored_names and name not in self.stored_names else name

    def finalize_config(self, config: GenerationConfig, options: TranslationOptions) -> GenerationConfig:
        source, target = self.language_pair(options)
        if self.languages:
            if source is None or target is None:
                defaults = self.tokenizer.init_kwargs
                source, target = source or defaults.get("src_lang"), target or defaults.get("tgt_lang")
            if source is not None:
                object.__setattr__(options, "source_code", self.language_code("src_lang", source))
            if target is not None:
                target_code = self.language_code("tgt_lang", target)
                object.__setattr__(options, "target_code", target_code)
                if "forced_bos_token_id" not in options.explicit:
                    config = replace(config, forced_bos_token_id=self.languages[target_code])
        elif not self.targets:
            self.check_pair(source, target, options)
            if source is None and target is None and self.stored_names:
                warnings.warn(
                    f"translation specifies no languages; using {self.task_params_name(options)}, the first of config.json's "
                    "task_specific_params: pass src_lang and tgt_lang, or use such a task name",
                    stacklevel=6,
                )
        elif options.tgt_lang is not None and target not in self.targets:
            raise InputError(
                f"tgt_lang {target!r} is not a language of this model; use one of {', '.join(self.targets)}"
            )
        return super().finalize_config(config, options)

    def text_ids(self, ids: list[int], options: TranslationOptions) -> list[int]:
        codes = set(self.languages.values()) if options.skip_special_tokens else ()
        return [token for token in ids if token not in codes]

    def prefix(self, options: TranslationOptions) -> str:
        target = self.language_pair(options)[1]
        return (f">>{target}<< " if target in self.targets else "") + super().prefix(options)

    def language_code(self, name: str, language: str) -> str:
        """Return the tokenizer's code of a language, which can be abbreviated if that is unambiguous.

        Args:
            name: Name of the option, for error messages.
            language: The language.

        Raises:
            InputError: the model does not support the language, or the abbreviation is ambiguous.
        """
        matches = [code for code in self.languages if code.startswith(f"{language}_")]
        matches = [language] if language in self.languages else matches
        if len(matches) != 1:
            raise InputError(
                f"{name} {language!r} is not a language of this model; use one of {', '.join(self.languages)}"
            )
        return matches[0]

    def check_pair(self, source: str | None, target: str | None, options: TranslationOptions) -> None:
        """Raise InputError if languages are specified that differ from those of a model without language codes."""
        trained = getattr(self.tokenizer, "source_lang", None), getattr(self.tokenizer, "target_lang", None)
        trained = trained if all(isinstance(code, str) for code in trained) else (None, None)
        differs = any(asked not in (None, code) for asked, code in zip((source, target), trained, strict=True))
        if trained != (None, None) and differs:
            raise InputError(
                f"this model translates {trained[0]!r} to {trained[1]!r}, not {source!r} to {target!r}; omit the languages"
            )
        from_name = options.src_lang is None and options.tgt_lang is None
        if trained != (None, None) or (from_name and (source is None or not self.stored_names)):
            return  # the languages in the task's name do not matter if the model has only one pair
        pairs = [match.groups() for name in self.stored_names if (match := PAIR.fullmatch(name)) is not None]
        if (source, target) not in pairs and (options.prefix is None or not pairs):
            supported = ", ".join(f"{a} to {b}" for a, b in pairs)
            raise InputError(
                f"src_lang={source!r}, tgt_lang={target!r}: "
                + (
                    f"this model translates {supported}; use one of those, or pass the prefix with which it was trained"
                    if supported
                    else "this model does not accept languages; omit them"
                )
            )

    # -- encoding --------------------------------------------------------------------------------------------------

    def encode(self, items: Sequence[Any], options: TranslationOptions, first: int = 0) -> list[list[Example]]:
        if self.languages and (options.source_code is None or options.target_code is None):
            raise InputError(
                f"{self.name} needs src_lang and tgt_lang, since this model is multilingual; use "
                f"{', '.join(self.languages)}"
            )
        return super().encode(items, options, first)

    def set_source_language(self, tokenizer: Tokenizer, options: TranslationOptions) -> None:
        if options.source_code is not None:
            tokenizer.src_lang = options.source_code

    def sentence_language(self, options: TranslationOptions) -> str:
        source = self.language_pair(options)[0] or getattr(self.tokenizer, "source_lang", None) or "en"
        return re.split("[_-]", source)[0]

    def warn_about_lengths(self, examples: Sequence[Example], options: TranslationOptions) -> None:
        config = options.resolved
        if config.max_new_tokens is not None or config.max_length is None:
            return
        long = next((example for example in examples if example.length > 0.9 * config.max_length), None)
        if long is not None:
            warnings.warn(
                f"input {long.state.number} has {long.length} tokens and max_length is {config.max_length}, so its translation "
                "may be truncated; raise max_length",
                stacklevel=5,
            )


def language_ids(tokenizer: Tokenizer) -> dict[str, int]:
    """Return the language codes with which a tokenizer marks sources and their token ids; {} for most tokenizers."""
    codes = getattr(tokenizer, "lang_code_to_id", None)
    if codes:
        return dict(codes)
    if not hasattr(tokenizer, "src_lang"):
        return {}
    return {token: i for token, i in tokenizer.get_added_vocab().items() if NLLB_CODE.fullmatch(token)}
