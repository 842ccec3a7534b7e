"""Read labeled texts from files, datasets and the Hub, split them evenly, and batch them for a classifier."""

from duonlp.data.labelled.batches import LabelledBatches
from duonlp.data.labelled.columns import LabelledColumns, TextTemplate
from duonlp.data.labelled.counts import LabelCounts, label_counts
from duonlp.data.labelled.files import Table, open_source
from duonlp.data.labelled.label_map import LabelMap
from duonlp.data.labelled.preparation import PreparationReport, PreparedTexts, prepare_labels, read_unlabelled_texts
from duonlp.data.labelled.splits import balanced_split, nested_slices, stratified_split
from duonlp.data.labelled.texts import LabelledTexts, read_labelled_texts
from duonlp.data.labelled.writing import write_labelled_texts, write_unlabelled_texts

__all__ = [
    "LabelCounts",
    "LabelMap",
    "LabelledBatches",
    "LabelledColumns",
    "LabelledTexts",
    "PreparationReport",
    "PreparedTexts",
    "Table",
    "TextTemplate",
    "balanced_split",
    "label_counts",
    "nested_slices",
    "open_source",
    "prepare_labels",
    "read_labelled_texts",
    "read_unlabelled_texts",
    "stratified_split",
    "write_labelled_texts",
    "write_unlabelled_texts",
]
