"""The framework-neutral part of training: schedules, FLOPs, logs, plots and what a run is configured with."""
