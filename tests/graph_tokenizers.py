"""Tokenizers of every kind that can be put in a graph, trained on few texts."""

from collections.abc import Callable
from functools import cache
from typing import Any

from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from tests.augmentation import TEXTS

SPECIAL = ("<s>", "<pad>", "</s>", "<unk>")
NAMES = ("bos", "pad", "eos", "unk")
FURTHER = (
    "don't we'll I've they're 1999 3.14 caf\u00e9 na\u00efve Stra\u00dfe a film, the films",
    "\u6771\u4eac \u3053\u3093 \uc548\ub155 \u0645\u0631 \U0001f600",
)
CORPUS = [*TEXTS, *FURTHER] * 20


def _fast(backend: Tokenizer, **options: Any) -> PreTrainedTokenizerFast:
    names = {f"{name}_token": token for name, token in zip(NAMES, SPECIAL, strict=True)}
    return PreTrainedTokenizerFast(tokenizer_object=backend, **names, **options)


def _train(backend: Tokenizer, trainer: Any) -> Tokenizer:
    backend.train_from_iterator(CORPUS, trainer)
    return backend


def _template(backend: Tokenizer, single: str, pair: str) -> None:
    tokens = [(token, backend.token_to_id(token)) for token in SPECIAL]
    backend.post_processor = processors.TemplateProcessing(single=single, pair=pair, special_tokens=tokens)


@cache
def bert(lowercase: bool = True, chinese: bool = True, accents: bool | None = None) -> PreTrainedTokenizerFast:
    """Return a WordPiece tokenizer with BERT's normalizer, and added tokens of all kinds."""
    backend = Tokenizer(models.WordPiece(unk_token="<unk>", max_input_chars_per_word=40))
    backend.normalizer = normalizers.BertNormalizer(
        lowercase=lowercase, handle_chinese_chars=chinese, strip_accents=accents
    )
    backend.pre_tokenizer, backend.decoder = pre_tokenizers.BertPreTokenizer(), decoders.WordPiece()
    _train(backend, trainers.WordPieceTrainer(vocab_size=300, special_tokens=list(SPECIAL), show_progress=False))
    _template(backend, "<s> $A </s>", "<s> $A </s> $B:1 </s>:1")
    tokenizer = _fast(backend, mask_token="<mask>")
    tokenizer.add_tokens(
        ["Film", "caf\u00e9s", AddedToken("the</s>", normalized=False), AddedToken("<ent>", rstrip=True)]
    )
    tokenizer.model_input_names = ["input_ids", "token_type_ids", "attention_mask"]
    return tokenizer


@cache
def roberta(prefix: bool = False) -> PreTrainedTokenizerFast:
    """Return a byte-level BPE tokenizer as RoBERTa's, whose mask token takes the space before it."""
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=prefix)
    backend.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    _train(
        backend,
        trainers.BpeTrainer(
            vocab_size=450, special_tokens=list(SPECIAL), initial_alphabet=alphabet, show_progress=False
        ),
    )
    ends = [(token, backend.token_to_id(token)) for token in ("</s>", "<s>")]
    backend.post_processor = processors.RobertaProcessing(*ends, trim_offsets=True, add_prefix_space=prefix)
    return _fast(backend, mask_token=AddedToken("<mask>", lstrip=True, normalized=False))


@cache
def gpt2() -> PreTrainedTokenizerFast:
    """Return a byte-level BPE tokenizer without special tokens around a text, that pads on the left."""
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer, backend.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=list(SPECIAL),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    return _fast(_train(backend, trainer), padding_side="left")


def _unigram(backend: Tokenizer) -> PreTrainedTokenizerFast:
    trainer = trainers.UnigramTrainer(
        vocab_size=220, special_tokens=list(SPECIAL), unk_token="<unk>", show_progress=False
    )
    _template(_train(backend, trainer), "$A </s>", "$A </s> $B </s>")
    return _fast(backend)


@cache
def t5() -> PreTrainedTokenizerFast:
    """Return a Unigram tokenizer that splits at whitespace and marks every word."""
    backend = Tokenizer(models.Unigram())
    backend.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Metaspace()])
    backend.decoder = decoders.Metaspace()
    return _unigram(backend)


@cache
def albert() -> PreTrainedTokenizerFast:
    """Return a Unigram tokenizer with ALBERT's normalizers, but for the precompiled one."""
    backend = Tokenizer(models.Unigram())
    backend.normalizer = normalizers.Sequence(
        [
            normalizers.Replace("``", '"'), normalizers.Replace("''", '"'), normalizers.NFKD(),
            normalizers.StripAccents(), normalizers.Lowercase(),
        ]
    )  # fmt: skip
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Metaspace(prepend_scheme="first")]
    )
    backend.decoder = decoders.Metaspace(prepend_scheme="first")
    return _unigram(backend)


TOKENIZERS: dict[str, Callable[[], PreTrainedTokenizerFast]] = {
    "bert": bert,
    "bert-cased": lambda: bert(lowercase=False, chinese=False),
    "bert-accents": lambda: bert(accents=False),
    "roberta": roberta,
    "roberta-prefix": lambda: roberta(prefix=True),
    "gpt2": gpt2,
    "t5": t5,
    "albert": albert,
}
"""Tokenizers by name."""
