"""One training loop for classifiers and detectors: steps, checkpoints, schedules, logs."""

from cyclopts import Parameter

IN_PYTHON = Parameter(parse=False)  # of a setting that is no option of the command line, which has at most 14 a command
