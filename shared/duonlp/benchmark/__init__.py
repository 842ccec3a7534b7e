"""Benchmark text classifiers: accuracy, latency, size and memory, and compare models and runs."""

from duonlp.benchmark.comparison import BenchmarkComparison, CompareSettings, Difference, compare_records, compare_runs
from duonlp.benchmark.memory import memory_alone
from duonlp.benchmark.performance import PerformanceBenchmark, benchmark_together
from duonlp.benchmark.record import BenchmarkRecord, Latency, Memory, read_records, write_records
from duonlp.benchmark.report import (
    plot_records,
    print_comparison,
    print_records,
    rows_of,
    rows_of_comparison,
    to_markdown,
)

__all__ = [
    "BenchmarkComparison",
    "BenchmarkRecord",
    "CompareSettings",
    "Difference",
    "Latency",
    "Memory",
    "PerformanceBenchmark",
    "benchmark_together",
    "compare_records",
    "compare_runs",
    "memory_alone",
    "plot_records",
    "print_comparison",
    "print_records",
    "read_records",
    "rows_of",
    "rows_of_comparison",
    "to_markdown",
    "write_records",
]
