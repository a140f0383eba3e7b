"""One training loop for classifiers and detectors: steps, checkpoints, schedules, logs."""
