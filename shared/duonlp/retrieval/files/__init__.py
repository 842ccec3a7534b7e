"""Split files into passages, and keep them in an index on disk."""

from duonlp.retrieval.files.index_folder import IndexFolder, IndexReport, default_index_folder
from duonlp.retrieval.files.passages import PassageSettings, document_files, line_of, read_passages, split_text

__all__ = [
    "IndexFolder",
    "IndexReport",
    "PassageSettings",
    "default_index_folder",
    "document_files",
    "line_of",
    "read_passages",
    "split_text",
]
