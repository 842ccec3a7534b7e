"""Read labeled texts from files, datasets and the Hub, and batch them for a classifier."""

from duonlp.data.labelled.batches import LabelledBatches
from duonlp.data.labelled.files import Table, open_source
from duonlp.data.labelled.texts import LabelledColumns, LabelledTexts, read_labelled_texts

__all__ = ["LabelledBatches", "LabelledColumns", "LabelledTexts", "Table", "open_source", "read_labelled_texts"]
