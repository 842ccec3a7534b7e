"""Read documents and tables from files, folders and the Hugging Face Hub."""

from duonlp.data.reading.corpus import is_held_out, standard_library_folder, text_files
from duonlp.data.reading.delimited import csv_rows
from duonlp.data.reading.document_files import TextFormat
from duonlp.data.reading.documents import Columns, Document, read_documents
from duonlp.data.reading.tables import file_rows, json_rows

__all__ = [
    "Columns",
    "Document",
    "TextFormat",
    "csv_rows",
    "file_rows",
    "is_held_out",
    "json_rows",
    "read_documents",
    "standard_library_folder",
    "text_files",
]
