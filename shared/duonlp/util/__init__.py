"""General helpers: files, figures, sentences, machine information and loading an engine."""

from duonlp.util.buckets import bucket
from duonlp.util.files import locked_file, locked_folder, may_read, replacing, storage_errors, write_text
from duonlp.util.frameworks import installed, keep_heap, load_package, package, require
from duonlp.util.machine_info import machine, processor
from duonlp.util.pictures import check_picture_file, picture, require_matplotlib, save_picture
from duonlp.util.sentences import is_dialogue, sentences_by_line, split_sentences
from duonlp.util.suggestions import choice, nearest, unknown_setting

__all__ = [
    "bucket",
    "check_picture_file",
    "choice",
    "installed",
    "is_dialogue",
    "keep_heap",
    "load_package",
    "locked_file",
    "locked_folder",
    "machine",
    "may_read",
    "nearest",
    "package",
    "picture",
    "processor",
    "replacing",
    "require",
    "require_matplotlib",
    "save_picture",
    "sentences_by_line",
    "split_sentences",
    "storage_errors",
    "unknown_setting",
    "write_text",
]
