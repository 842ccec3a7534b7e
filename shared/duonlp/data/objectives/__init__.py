"""Pretraining objectives: turn blocks of token ids into model inputs and labels."""

from duonlp.data.objectives.denoising import SpanCorruption, TextInfilling, block_length_for
from duonlp.data.objectives.encoder_decoder import EncoderDecoderObjective
from duonlp.data.objectives.gap_sentence_generation import GapSentences, gap_sentences
from duonlp.data.objectives.language_modelling import CausalLM, MaskedLM, head_of, objective
from duonlp.data.objectives.masked_texts import MaskedTexts
from duonlp.data.objectives.vocabulary import WordBorders, sentinels, special_tokens, word_borders

__all__ = [
    "CausalLM",
    "EncoderDecoderObjective",
    "GapSentences",
    "MaskedLM",
    "MaskedTexts",
    "SpanCorruption",
    "TextInfilling",
    "WordBorders",
    "block_length_for",
    "gap_sentences",
    "head_of",
    "objective",
    "sentinels",
    "special_tokens",
    "word_borders",
]
