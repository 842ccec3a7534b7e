"""Read documents with summaries, measure them in tokens, and batch them for an encoder-decoder."""

from duonlp.data.pairs.batches import PairBatches
from duonlp.data.pairs.collator import PairCollator
from duonlp.data.pairs.lengths import LengthReport, Lengths, length_report
from duonlp.data.pairs.summaries import Pair, PairColumns, pair, read_pairs

__all__ = [
    "LengthReport",
    "Lengths",
    "Pair",
    "PairBatches",
    "PairCollator",
    "PairColumns",
    "length_report",
    "pair",
    "read_pairs",
]
