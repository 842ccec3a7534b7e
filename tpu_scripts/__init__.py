"""Programs to run on every host of a TPU pod, or on one CPU: short, linear, one job each."""
