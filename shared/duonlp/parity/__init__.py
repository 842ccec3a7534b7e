"""Compare the outputs of one checkpoint across frameworks."""

from duonlp.parity.comparison import FRAMEWORKS, TOLERANCE, TOLERANCE_OF_QUANTIZED, assert_parity, compare
from duonlp.parity.inputs import TEXTS, make_inputs
from duonlp.parity.report import Report, Row
from duonlp.parity.runners import AUTO_CLASSES

__all__ = [
    "AUTO_CLASSES",
    "FRAMEWORKS",
    "TEXTS",
    "TOLERANCE",
    "TOLERANCE_OF_QUANTIZED",
    "Report",
    "Row",
    "assert_parity",
    "compare",
    "make_inputs",
]
