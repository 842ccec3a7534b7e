"""Byte-level byte-pair encoding, trained from text (Sennrich et al. 2016; byte level as in GPT-2)."""

from collections.abc import Iterable

from shared.errors import InputError

END_OF_TEXT = "<|endoftext|>"
BYTES = 256


def train_byte_level_bpe(
    texts: Iterable[str], vocab_size: int, *, end_of_text: str = END_OF_TEXT, max_length: int | None = None
):
    """Trains a byte-level BPE tokenizer, which can encode any text and give it back unchanged.

    Args:
        texts: the training texts, read once.
        vocab_size: the size of the vocabulary, with the 256 bytes and the special token.
        end_of_text: the one special token; it begins, ends and pads.
        max_length: the `model_max_length` to record in the tokenizer.

    Returns:
        A `transformers` fast tokenizer; `save_pretrained` writes it in the Hugging Face layout.

    Raises:
        InputError: `vocab_size` leaves no room for the bytes and the special token.
    """
    if vocab_size <= BYTES:
        raise InputError(f"vocab_size is {vocab_size}; it must be at least {BYTES + 1}: every byte and {end_of_text}")

    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[end_of_text],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    lengths = {} if max_length is None else {"model_max_length": max_length}
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=end_of_text,
        eos_token=end_of_text,
        pad_token=end_of_text,
        unk_token=end_of_text,
        **lengths,
    )
