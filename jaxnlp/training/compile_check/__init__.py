"""Compile a training step ahead of time for a TPU topology, and report its memory, FLOPs and communication."""

from jaxnlp.training.compile_check.report import StepReport, compile_step

__all__ = ["StepReport", "compile_step"]
