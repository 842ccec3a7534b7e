"""Evaluation of models: code that is run against its tests, and the figures that come of it."""
