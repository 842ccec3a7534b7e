"""Tokenizers trained from a stream of texts: byte-level BPE, WordPiece and Unigram, each a `transformers` fast tokenizer.

`save_pretrained` writes one in the Hugging Face layout, and `AutoTokenizer.from_pretrained` reads it back the same.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from duonlp.errors import InputError
from duonlp.util import frameworks

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
"""What each kind has unless told otherwise, in the order of the ids: as GPT-2, BERT and T5 have it."""

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
):
    """Trains a tokenizer of one of three kinds.

    - "bpe": byte-pair encoding over bytes (Sennrich et al. 2016, arXiv:1508.07909; bytes as in GPT-2). It encodes any
      text and gives it back unchanged. One special token begins, ends and pads. Seconds for 10 MB, and the same texts
      give the same tokenizer.
    - "wordpiece": as BERT's (Devlin et al. 2019, arXiv:1810.04805): words and punctuation apart, pieces within a word
      marked with ##, [CLS] A [SEP] B [SEP] round the texts. White space is lost, and what it cannot spell is [UNK].
    - "unigram": a unigram language model over pieces (Kudo 2018, arXiv:1804.10959) with SentencePiece's normalisation
      (NFKC, every run of white space one space) and ▁ for a space, as T5 and ALBERT: A </s> round a text, or
      [CLS] A [SEP] B [SEP] when `special_tokens` names a cls_token and a sep_token, as ALBERT does. Minutes for 10 MB.

    In the last two the library breaks ties as it happens to meet them: a second training may order or choose a few
    pieces otherwise, so keep the tokenizer that a model was trained with.

    Args:
        texts: the training texts, a stream that is read once; batches are made here.
        kind: "bpe", "wordpiece" or "unigram".
        vocab_size: the size of the vocabulary at most, with the special tokens and the alphabet. A small corpus gives
            fewer: `len(tokenizer)` says.
        special_tokens: role -> token, over the kind's own in SPECIAL_TOKENS; None takes a role away. Roles are
            bos_token, eos_token, pad_token, unk_token, cls_token, sep_token and mask_token.
        extra_special_tokens: further ones without a role; they come after the others.
        max_length: the `model_max_length` to record, in tokens.
        lowercase: lower-case texts (and strip accents, in WordPiece, as BERT's uncased models). Not for "bpe".
        min_frequency: pairs seen less often are not merged ("bpe" and "wordpiece").
        max_piece_length: of a piece in characters ("unigram").
        show_progress: bars on standard error.

    Returns:
        A `transformers` fast tokenizer.

    Raises:
        InputError: an unknown kind or role, a stream without text, something in it that is no text, or a vocabulary
            that has no room for the alphabet.
    """
    _check_kind(kind)
    _check_vocab_size(vocab_size)
    if lowercase and kind == "bpe":
        raise InputError('lowercase is True with kind "bpe", which gives every text back unchanged; leave it False')
    roles = _roles(kind, special_tokens)
    special = list(dict.fromkeys([*roles.values(), *extra_special_tokens]))
    if kind == "bpe" and vocab_size < BYTES + len(special):
        raise InputError(
            f"vocab_size is {vocab_size}; it must be at least {BYTES + len(special)}: every byte, and "
            f"{', '.join(special) or 'no special token'}"
        )

    from tokenizers import trainers

    tokenizer = _untrained(kind, roles, lowercase)
    settings: dict[str, Any] = {
        "vocab_size": vocab_size, "special_tokens": special, "show_progress": show_progress
    }  # fmt: skip
    if kind == "bpe":
        from tokenizers.pre_tokenizers import ByteLevel

        alphabet = ByteLevel.alphabet()
        trainer = trainers.BpeTrainer(min_frequency=min_frequency, initial_alphabet=alphabet, **settings)
    elif kind == "wordpiece":
        trainer = trainers.WordPieceTrainer(min_frequency=min_frequency, **settings)
    else:
        trainer = trainers.UnigramTrainer(
            unk_token=roles["unk_token"], max_piece_length=max_piece_length, **settings
        )  # fmt: skip
    stream = _Stream(texts)
    with _vocabulary_errors(vocab_size):
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


def train_new_from(tokenizer, texts: Iterable[str], vocab_size: int, **options):
    """Trains a tokenizer with another's normalisation, splitting, special tokens and kind, on new texts.

    Transformers' `train_new_from_iterator` does the work; this checks the stream and the result.

    Args:
        tokenizer: a `transformers` fast tokenizer; it stays as it is.
        texts: the training texts, read once.
        vocab_size: of the new tokenizer.
        options: of `train_new_from_iterator` (new_special_tokens, special_tokens_map) and of the trainer.

    Raises:
        InputError: a tokenizer that is not a fast one, no text, or a vocabulary without room for the alphabet.
    """
    if getattr(tokenizer, "backend_tokenizer", None) is None:
        raise InputError(f"tokenizer is a {type(tokenizer).__name__}; only a fast one can be trained again")
    _check_vocab_size(vocab_size)
    stream = _Stream(texts)
    with _vocabulary_errors(vocab_size):
        trained = tokenizer.train_new_from_iterator(stream, vocab_size, **{"show_progress": False} | options)
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
    """The trainers keep the whole alphabet, whatever was asked for: a larger vocabulary than that is said to be so."""
    if size > vocab_size:
        raise InputError(
            f"vocab_size is {vocab_size}, and the alphabet of the texts with the special tokens takes {size}; "
            f"ask for at least {size}"
        )


def _roles(kind: str, given: Mapping[str, str | None] | None) -> dict[str, str]:
    """Role -> special token."""
    roles = dict(SPECIAL_TOKENS[kind])
    for role, token in (given or {}).items():
        if role not in ROLES:
            raise InputError(
                f"special_tokens has {role!r}, which is no role; roles are {', '.join(ROLES)}, and tokens without "
                "a role go into extra_special_tokens"
            )
        if token is not None and (not isinstance(token, str) or not token):
            raise InputError(f"special_tokens[{role!r}] is {token!r}; it must be a text, or None for no such token")
        roles[role] = token
    roles = {role: token for role, token in roles.items() if token is not None}
    if kind != "bpe" and "unk_token" not in roles:
        raise InputError(f'kind "{kind}" needs an unk_token for what it cannot spell; give special_tokens one')
    if len({"cls_token", "sep_token"} & roles.keys()) == 1:
        raise InputError("special_tokens has one of cls_token and sep_token; give both, or neither")
    return roles


def _untrained(kind: str, roles: Mapping[str, str], lowercase: bool):
    """A `tokenizers.Tokenizer` with everything but its vocabulary and its post-processor."""
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


def _add_post_processor(tokenizer, kind: str, roles: Mapping[str, str]) -> None:
    """What goes round a text and between two, where the kind or its tokens say so."""
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


class _Stream:
    """Texts on their way to a trainer, checked one by one and counted."""

    def __init__(self, texts: Iterable[str]):
        if isinstance(texts, (str, bytes)):
            raise InputError("texts is one text; give an iterable of texts, such as [text]")
        self.texts, self.read, self.with_text = texts, 0, 0

    def __iter__(self) -> Iterator[str]:
        for text in self.texts:
            if not isinstance(text, str):
                raise InputError(f"text {self.read} of the stream is a {type(text).__name__}; each must be a str")
            self.read += 1
            self.with_text += bool(text) and not text.isspace()
            yield text

    def check(self) -> None:
        if not self.with_text:
            raise InputError(
                f"the stream had {self.read} texts and nothing but white space in them; give texts to train on"
                if self.read
                else "the stream had no texts; give at least one"
            )


class _vocabulary_errors:
    """The library's bare Exception about too small a vocabulary, as an error that names it."""

    def __init__(self, vocab_size: int):
        self.vocab_size = vocab_size

    def __enter__(self):
        return self

    def __exit__(self, kind, error, traceback):
        if error is not None and "not large enough" in str(error):
            raise InputError(
                f"vocab_size is {self.vocab_size}, which has no room for every character of the texts; ask for more"
            ) from None
        if isinstance(error, UnicodeEncodeError):
            raise InputError(f"a text cannot be written as UTF-8 ({error.reason}); leave such texts out") from None
