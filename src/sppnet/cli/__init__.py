"""The command line: parse, make one call, print. Heavy libraries are imported inside the command that needs them.

Results go to standard output (with ``--json``, one JSON document and nothing else), messages and progress to standard
error. A mistake of the user's is one line and exit status 2; an interrupted run ends with 130.

A file for each command, named for it. They share `parameters` (options and their help), `values` (what else these must be),
`loading` (models and devices), `work` (folders on the way) and `each_image` (what `detect` and `classify` do alike).
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from io import TextIOWrapper

from cyclopts import App, CycloptsError

from sppnet import __version__
from sppnet.cli import (
    check,
    classify,
    compare,
    compress,
    demo,
    detect,
    evaluate,
    proposals,
    train_classifier,
    train_detector,
)
from sppnet.cli.loading import CACHES
from sppnet.errors import UserError
from sppnet.terminal import complain

__all__ = ["CACHES", "app", "main", "run"]

app = App(
    name="sppnet",
    help="Vision models that take your images at their own size: classify, detect, train.",
    version=__version__,
    help_format="plaintext",
    suppress_keyboard_interrupt=False,  # `run` says what becomes of the work
)
train = App(name="train", help="Train a model on your own images.")

app.command(demo.demo)
app.command(detect.detect)
app.command(classify.classify)
app.command(train)
train.command(train_detector.detector)
train.command(train_classifier.classifier)
app.command(evaluate.evaluate)
app.command(compress.compress)
app.command(compare.compare)
app.command(check.check)
app.command(proposals.proposals)


def main(words: Sequence[str] | None = None) -> None:
    """Run the command line and exit."""
    if isinstance(sys.stdout, TextIOWrapper):
        sys.stdout.reconfigure(errors="surrogateescape")  # file names may be any bytes; they come out as they are
    sys.exit(run(sys.argv[1:] if words is None else words))


def run(words: Sequence[str]) -> int:
    """Run one command line; the exit status."""
    try:
        status = app(list(words), exit_on_error=False, print_error=False, result_action="return_value")
    except UserError as error:
        return complain(str(error))
    except CycloptsError as error:
        return complain(f"{str(error).rstrip('.')}; see 'sppnet --help'")
    except KeyboardInterrupt:
        print("\nstopped; what was finished is kept", file=sys.stderr)
        return 130
    except BrokenPipeError:  # the reader of our output has gone, as in `| head`
        sys.stderr.close()
        return 0
    return int(status or 0)
