"""Train byte-level BPE, WordPiece and Unigram tokenizers from a stream of texts.

The result is a `transformers` fast tokenizer: `save_pretrained` writes it in Hugging Face layout, and
`AutoTokenizer.from_pretrained` loads it back unchanged.
"""

from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, cast

from duonlp.errors import InputError
from duonlp.util import frameworks

if TYPE_CHECKING:
    from tokenizers import Tokenizer, trainers
    from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

KINDS = ("bpe", "wordpiece", "unigram")
END_OF_TEXT = "<|endoftext|>"
BYTES = 256

SPECIAL_TOKENS: dict[str, dict[str, str]] = {
    "bpe": dict.fromkeys(("bos_token", "eos_token", "pad_token", "unk_token"), END_OF_TEXT),
    "wordpiece": {
        "pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]", "mask_token": "[MASK]",
    },
    "unigram": {"pad_token": "<pad>", "eos_token": "</s>", "unk_token": "<unk>"},
}  # fmt: skip
"""Default special tokens of each kind by role, in the order of their ids: those of GPT-2, BERT and T5."""

ROLES = ("bos_token", "eos_token", "pad_token", "unk_token", "cls_token", "sep_token", "mask_token")


def train_tokenizer(
    texts: Iterable[str],
    kind: str = "bpe",
    vocab_size: int = 32_768,
    *,
    special_tokens: Mapping[str, str | None] | None = None,
    extra_special_tokens: Sequence[str] = (),
    max_length: int | None = None,
    lowercase: bool = False,
    min_frequency: int = 2,
    max_piece_length: int = 16,
    show_progress: bool = False,
) -> "PreTrainedTokenizerFast":
    """Train a tokenizer of one of three kinds.

    - "bpe": byte-level byte-pair encoding (Sennrich et al. 2016, arXiv:1508.07909; bytes as in GPT-2).
      Encodes any text and restores it exactly. One special token serves as beginning, end and padding.
      Takes seconds for 10 MB and is deterministic.
    - "wordpiece": BERT's WordPiece (Devlin et al. 2019, arXiv:1810.04805). Splits words and
      punctuation, marks pieces within a word with ##, and wraps texts as [CLS] A [SEP] B [SEP].
      Whitespace is lost, and unknown characters become [UNK].
    - "unigram": a unigram language model over pieces (Kudo 2018, arXiv:1804.10959) with SentencePiece's
      normalization (NFKC, whitespace runs collapsed to one space) and ▁ for a space, as in T5 and
      ALBERT. Texts end in </s> as in T5, or are wrapped as [CLS] A [SEP] B [SEP] as in ALBERT if
      `special_tokens` names a cls_token and a sep_token. Takes minutes for 10 MB.

    For the last two the library breaks ties nondeterministically: training again may order or choose a
    few pieces differently, so keep the tokenizer a model was trained with.

    Args:
        texts: Training texts, consumed once, as a stream.
        kind: "bpe", "wordpiece" or "unigram".
        vocab_size: Maximum size of the vocabulary, including special tokens and the alphabet. A small
            corpus gives a smaller one; `len(tokenizer)` is the actual size.
        special_tokens: Special tokens by role, overriding the kind's defaults in `SPECIAL_TOKENS`; None
            removes a role. Roles are bos_token, eos_token, pad_token, unk_token, cls_token, sep_token
            and mask_token.
        extra_special_tokens: Special tokens without a role, placed after the others.
        max_length: Value for the tokenizer's `model_max_length`, in tokens.
        lowercase: Lowercase texts ("wordpiece" also strips accents, like BERT's uncased models).
            Unsupported for "bpe".
        min_frequency: Minimum frequency of a pair to be merged ("bpe" and "wordpiece").
        max_piece_length: Maximum length of a piece in characters ("unigram").
        show_progress: Show progress bars on standard error.

    Returns:
        A `transformers` fast tokenizer.

    Raises:
        InputError: If the kind or a role is unknown, the stream has no text or an item that is not a
            str, or the vocabulary is too small for the alphabet.
    """
    _check_kind(kind)
    _check_vocab_size(vocab_size)
    if lowercase and kind == "bpe":
        raise InputError('lowercase is True, but kind "bpe" restores texts exactly; set lowercase=False')
    roles = _resolve_roles(kind, special_tokens)
    special = list(dict.fromkeys([*roles.values(), *extra_special_tokens]))
    if kind == "bpe" and vocab_size < BYTES + len(special):
        raise InputError(
            f"vocab_size is {vocab_size}; it must be at least {BYTES + len(special)} to hold every byte and "
            f"{', '.join(special) or 'no special token'}"
        )

    tokenizer = _build_untrained(kind, roles, lowercase)
    settings: dict[str, Any] = {
        "vocab_size": vocab_size, "special_tokens": special, "show_progress": show_progress
    }  # fmt: skip
    if kind == "unigram":
        settings |= {"unk_token": roles["unk_token"], "max_piece_length": max_piece_length}
    else:
        settings["min_frequency"] = min_frequency
    trainer = _build_trainer(kind, settings)
    stream = _TextStream(texts)
    with _translate_errors(vocab_size):
        tokenizer.train_from_iterator(stream, trainer)
    stream.check()
    if kind == "wordpiece":
        _check_room(tokenizer.get_vocab_size(), vocab_size)
    _add_post_processor(tokenizer, kind, roles)

    PreTrainedTokenizerFast = frameworks.transformers().PreTrainedTokenizerFast
    options: dict[str, Any] = dict(roles)
    if max_length is not None:
        options["model_max_length"] = max_length
    if extra_special_tokens:
        options["extra_special_tokens"] = list(extra_special_tokens)
    if kind == "wordpiece" or {"cls_token", "sep_token"} <= roles.keys():
        options["model_input_names"] = ["input_ids", "token_type_ids", "attention_mask"]
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, clean_up_tokenization_spaces=False, **options)


def train_new_from(
    tokenizer: "PreTrainedTokenizerBase", texts: Iterable[str], vocab_size: int, **options: Any
) -> "PreTrainedTokenizerFast":
    """Train a tokenizer on new texts with the normalization, splitting, special tokens and kind of an existing one.

    Wraps Transformers' `train_new_from_iterator`, and checks the stream and the result.

    Args:
        tokenizer: A `transformers` fast tokenizer; not modified.
        texts: Training texts, consumed once.
        vocab_size: Maximum size of the new vocabulary.
        **options: Options of `train_new_from_iterator` (new_special_tokens, special_tokens_map) and of
            the trainer.

    Returns:
        A `transformers` fast tokenizer.

    Raises:
        InputError: If the tokenizer is not a fast one, there is no text, or the vocabulary is too small
            for the alphabet.
    """
    if getattr(tokenizer, "backend_tokenizer", None) is None:
        raise InputError(
            f"tokenizer is a {type(tokenizer).__name__}; give a fast tokenizer, since others cannot be retrained"
        )
    _check_vocab_size(vocab_size)
    stream = _TextStream(texts)
    with _translate_errors(vocab_size):
        options = {"show_progress": False} | options
        trained = cast("PreTrainedTokenizerFast", tokenizer).train_new_from_iterator(stream, vocab_size, **options)
    stream.check()
    if type(trained.backend_tokenizer.model).__name__ != "Unigram":
        _check_room(len(trained), vocab_size)
    return trained


def _check_kind(kind: str) -> None:
    if kind not in KINDS:
        raise InputError(f"kind is {kind!r}; it must be one of {', '.join(KINDS)}")


def _check_vocab_size(vocab_size: int) -> None:
    if not isinstance(vocab_size, int) or isinstance(vocab_size, bool) or vocab_size < 1:
        raise InputError(f"vocab_size is {vocab_size!r}; it must be a positive integer")


def _check_room(size: int, vocab_size: int) -> None:
    """Raise InputError if the vocabulary exceeds `vocab_size`, since trainers keep the whole alphabet."""
    if size > vocab_size:
        raise InputError(
            f"vocab_size is {vocab_size}, but special tokens and the alphabet of the texts take {size}; set it to at least {size}"
        )


def _resolve_roles(kind: str, overrides: Mapping[str, str | None] | None) -> dict[str, str]:
    """Return the special token of each role: the kind's defaults updated with `overrides`."""
    merged: dict[str, str | None] = dict(SPECIAL_TOKENS[kind])
    for role, token in (overrides or {}).items():
        if role not in ROLES:
            raise InputError(
                f"special_tokens has the unknown role {role!r}; roles are {', '.join(ROLES)}, and tokens without a role go into "
                "extra_special_tokens"
            )
        if token is not None and (not isinstance(token, str) or not token):
            raise InputError(
                f"special_tokens[{role!r}] is {token!r}; it must be a non-empty str, or None to remove the role"
            )
        merged[role] = token
    roles = {role: token for role, token in merged.items() if token is not None}
    if kind != "bpe" and "unk_token" not in roles:
        raise InputError(f'kind "{kind}" requires an unk_token for unknown characters; add one to special_tokens')
    if len({"cls_token", "sep_token"} & roles.keys()) == 1:
        raise InputError("special_tokens has only one of cls_token and sep_token; give both or neither")
    return roles


def _build_trainer(kind: str, settings: dict[str, Any]) -> "trainers.Trainer":
    from tokenizers import trainers
    from tokenizers.pre_tokenizers import ByteLevel

    if kind == "bpe":
        return trainers.BpeTrainer(initial_alphabet=ByteLevel.alphabet(), **settings)
    if kind == "wordpiece":
        return trainers.WordPieceTrainer(**settings)
    return trainers.UnigramTrainer(**settings)


def _build_untrained(kind: str, roles: Mapping[str, str], lowercase: bool) -> "Tokenizer":
    """Return a `tokenizers.Tokenizer` that only lacks its vocabulary and its post-processor."""
    from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers

    if kind == "bpe":
        tokenizer = Tokenizer(models.BPE())
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        tokenizer.decoder = decoders.ByteLevel()
    elif kind == "wordpiece":
        tokenizer = Tokenizer(models.WordPiece(unk_token=roles["unk_token"]))
        tokenizer.normalizer = normalizers.BertNormalizer(lowercase=lowercase)
        tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
        tokenizer.decoder = decoders.WordPiece()
    else:
        tokenizer = Tokenizer(models.Unigram())
        steps = [normalizers.Nmt(), normalizers.NFKC(), normalizers.Replace(Regex(" {2,}"), " ")]
        tokenizer.normalizer = normalizers.Sequence(steps + ([normalizers.Lowercase()] if lowercase else []))
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
        tokenizer.decoder = decoders.Metaspace()
    return tokenizer


def _add_post_processor(tokenizer: "Tokenizer", kind: str, roles: Mapping[str, str]) -> None:
    """Set the template of special tokens around a text and a pair, if the kind or its tokens have one."""
    from tokenizers.processors import TemplateProcessing

    if "cls_token" in roles:
        cls, sep = roles["cls_token"], roles["sep_token"]
        single, pair, used = f"{cls} $A {sep}", f"{cls}:0 $A:0 {sep}:0 $B:1 {sep}:1", (cls, sep)
    elif kind == "unigram" and "eos_token" in roles:
        end = roles["eos_token"]
        single, pair, used = f"$A {end}", f"$A {end} $B {end}", (end,)
    else:
        return
    ids = [(token, tokenizer.token_to_id(token)) for token in used]
    tokenizer.post_processor = TemplateProcessing(single=single, pair=pair, special_tokens=ids)


class _TextStream:
    """Checks and counts texts on their way to a trainer.

    Attributes:
        texts: The texts.
        read: Number of texts yielded so far.
        with_text: Number of these that contain more than whitespace.
    """

    def __init__(self, texts: Iterable[str]):
        if isinstance(texts, (str, bytes)):
            raise InputError("texts is a single text; give an iterable of texts, such as [text]")
        self.texts, self.read, self.with_text = texts, 0, 0

    def __iter__(self) -> Iterator[str]:
        for text in self.texts:
            if not isinstance(text, str):
                raise InputError(f"text {self.read} of the stream has type {type(text).__name__}; expected str")
            self.read += 1
            self.with_text += bool(text) and not text.isspace()
            yield text

    def check(self) -> None:
        """Raise InputError if no text contained more than whitespace."""
        if not self.with_text:
            raise InputError(
                f"the stream had {self.read} texts, but only whitespace in them; give texts to train on"
                if self.read
                else "the stream had no texts; give at least one"
            )


@contextmanager
def _translate_errors(vocab_size: int) -> Generator[None, None, None]:
    """Turn the library's bare Exception about a small vocabulary and its encoding errors into InputErrors."""
    try:
        yield
    except UnicodeEncodeError as error:
        raise InputError(f"a text cannot be encoded as UTF-8 ({error.reason}); remove such texts") from None
    except Exception as error:
        if "not large enough" not in str(error):
            raise
        raise InputError(
            f"vocab_size is {vocab_size}, too small for all characters of the texts; increase it"
        ) from None
