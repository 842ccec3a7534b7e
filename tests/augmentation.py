"""A masked language model without a framework, and tokenizers of three kinds for it."""

from functools import cache

import numpy as np
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from duonlp.architectures import config_from_hf
from duonlp.pipelines import Pipeline, make_pipeline

TEXTS = (
    "The download hangs at 99% when the network is slow, and the progress bar (which is new) never moves again.",
    "Please add support for the `new_model` tokenizer; see https://example.org/issues for the unbelievably long discussion.",
    "Training fails with an error:\n\n```python\nmodel.fit(data)\n```\n\nThe loss is NaN after some steps. Any ideas?",
    "I'd like to use the Trainer API with two GPUs, but memory grows until the process is killed.",
    "Übersetzung von Texten ist schön; the naïve approach doesn't work.",
)
KINDS = ("wordpiece", "bytes", "sentencepiece")
SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]


@cache
def tokenizer(kind: str) -> PreTrainedTokenizerFast:
    """Return a tokenizer trained on TEXTS: WordPiece in lower case, byte-level BPE, or Unigram with marks for spaces."""
    if kind == "wordpiece":
        backend = Tokenizer(models.WordPiece(unk_token="[UNK]"))
        backend.normalizer = normalizers.BertNormalizer(lowercase=True)
        backend.pre_tokenizer, backend.decoder = pre_tokenizers.BertPreTokenizer(), decoders.WordPiece()
        trainer = trainers.WordPieceTrainer(vocab_size=260, special_tokens=SPECIAL)
    elif kind == "bytes":
        backend = Tokenizer(models.BPE(unk_token="[UNK]"))
        backend.pre_tokenizer, backend.decoder = pre_tokenizers.ByteLevel(add_prefix_space=True), decoders.ByteLevel()
        alphabet = pre_tokenizers.ByteLevel.alphabet()
        trainer = trainers.BpeTrainer(vocab_size=420, special_tokens=SPECIAL, initial_alphabet=alphabet)
    else:
        backend = Tokenizer(models.Unigram())
        backend.pre_tokenizer, backend.decoder = pre_tokenizers.Metaspace(), decoders.Metaspace()
        trainer = trainers.UnigramTrainer(vocab_size=200, special_tokens=SPECIAL, unk_token="[UNK]")
    backend.train_from_iterator(TEXTS * 20, trainer)
    ends = [(token, backend.token_to_id(token)) for token in ("[CLS]", "[SEP]")]
    backend.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B [SEP]", special_tokens=ends
    )
    names = ("pad", "unk", "cls", "sep", "mask")
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, **{f"{name}_token": token for name, token in zip(names, SPECIAL, strict=True)}
    )


@cache
def fill_mask(kind: str = "wordpiece", positions: int = 64, batch_size: int = 8) -> Pipeline:
    """Return a "fill-mask" pipeline around random predictions that depend on a row's tokens but not on its batch."""
    tokens = tokenizer(kind)
    size = len(tokens)
    hf = {
        "model_type": "bert", "vocab_size": size, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2,
        "intermediate_size": 16, "max_position_embeddings": positions,
    }  # fmt: skip
    weights = np.random.default_rng(0).integers(-8, 9, (size, size)).astype(np.float32) / 4

    def forward(batch):
        mask = batch["attention_mask"][:, :, None]
        context = (weights[batch["input_ids"]] * mask).sum(1, keepdims=True)  # [B, 1, V], sums of quarters are exact
        places = np.arange(batch["input_ids"].shape[1], dtype=np.float32)[None, :, None] % 7
        return {"logits": (context * (1 + places)) % 8 + np.arange(size, dtype=np.float32) / 4096}  # no two are equal

    return make_pipeline("fill-mask", forward, tokens, config_from_hf(hf), batch_size=batch_size)


WORDS = (
    "[PAD]",
    "</s>",
    "[UNK]",
    "the",
    "model",
    "is",
    "slow",
    ".",
    "and",
    "memory",
    "grows",
    "`x_1`",
    "Fine",
    "please",
    "help",
)
WORDS = (*WORDS, "das", "Modell", "ist", "langsam")
FORTH = {"the": "das", "model": "Modell", "is": "ist", "slow": "langsam"}


def translator(table: dict[str, str], positions: int = 24) -> Pipeline:
    """Return a "translation" pipeline that translates word by word and rotates the words of its n-th best translation by n."""
    backend = Tokenizer(models.WordLevel({word: index for index, word in enumerate(WORDS)}, unk_token="[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    backend.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    names = {"pad_token": "[PAD]", "eos_token": "</s>", "unk_token": "[UNK]", "model_max_length": positions}
    tokens = PreTrainedTokenizerFast(tokenizer_object=backend, **names)
    config = config_from_hf({
        "model_type": "t5", "vocab_size": len(tokens), "d_model": 8, "d_kv": 4, "d_ff": 8, "num_layers": 1, "num_heads": 2,
        "decoder_start_token_id": 0, "pad_token_id": 0, "eos_token_id": 1,
    })  # fmt: skip
    ids = np.array([WORDS.index(table.get(word, word)) for word in WORDS])

    def generate(input_ids, attention_mask, *, generation_config, **options):
        rows = []
        for row, mask in zip(np.asarray(input_ids), np.asarray(attention_mask)):
            words = ids[row[mask != 0][:-1]].tolist()
            for number in range(generation_config.num_return_sequences):
                number = number % max(1, len(words))
                rows.append([0, *words[number:], *words[:number], 1])
        longest = max(map(len, rows))
        return np.array([row + [0] * (longest - len(row)) for row in rows])

    return make_pipeline("translation", generate, tokens, config)
