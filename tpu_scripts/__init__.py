"""Programs that a person runs on every host of a pod, or on one CPU: short, linear, one a job."""
