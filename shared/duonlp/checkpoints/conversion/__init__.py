"""Convert checkpoints of other layouts to safetensors."""

from duonlp.checkpoints.conversion.convert import check_output, convert, copy_files, small_files

__all__ = ["check_output", "convert", "copy_files", "small_files"]
