"""The command line: parse, make one call, print. A command a file, imported when it is called.

Results go to standard output (with ``--json``, one JSON document and nothing else), messages and progress to standard error. A mistake
of the user's is one line and exit status 2; an interrupted run ends with 130. Options are the fields of the settings classes, so
that their defaults and checks are those of Python.
"""

from __future__ import annotations

import gc
import os
import re
import signal
import sys
from collections.abc import Sequence
from contextlib import suppress
from io import TextIOWrapper

from cyclopts import App, CycloptsError, Parameter

from sppnet import __version__
from sppnet.errors import UserError, printable

ALLOW_TRUNCATED = "--allow-truncated"
app = App(
    name="sppnet",
    help="Vision models that take your images at their own size: classify, detect, train. "
    f"With {ALLOW_TRUNCATED}, every command reads images that are cut short as far as they go; the rest is gray.",
    version=__version__,
    help_format="plaintext",
    suppress_keyboard_interrupt=False,  # `run` says what becomes of the work
    default_parameter=Parameter(consume_multiple=True, negative_iterable=()),
)
train = App(name="train", help="Train a model on your own images.")
app.command(
    "sppnet.cli.demo:demo", help="Try it out: sample photos in, annotated pictures and JSON out. Works offline."
)
app.command("sppnet.cli.detect:detect", help="Find objects: boxes, labels and scores for every image.")
app.command("sppnet.cli.classify:classify", help="Say what is in every image.")
app.command("sppnet.cli.classify:embed", help="Turn every image into a vector of one length.")
app.command("sppnet.cli.check:check", help="Name every bad file and box of a data set, and why.")
app.command(train)
train.command("sppnet.cli.train:detector", help="Train a detector on annotated images.")
train.command("sppnet.cli.train:classifier", help="Train a classifier on a folder of class folders.")
train.command("sppnet.cli.train:svm", help="Train the paper's SVMs and box regression on a detector.")
train.command("sppnet.cli.train:add_class", help="Add a class to a detector with SVMs; the others stay as they are.")
app.command("sppnet.cli.evaluate:evaluate", help="Score a model on data that it was not trained on.")
app.command("sppnet.cli.train:compare", help="Warp, crop, letterbox, or native shape: which serves your images?")
app.command("sppnet.cli.train:compress", help="Make a model smaller and faster.")
app.command("sppnet.cli.evaluate:proposals", help="Propose boxes for a data set, and say how many objects they find.")

# Options of earlier versions, and what says the same now.
RENAMED = {
    "--proposer": "--proposals",
    "--work": "--cache",
    "--fit": "--resize-mode",
    "--learn": "--train-layers",
    "--end-to-end": "--preset standard",
    "--steps": "--epochs",
    "--mirrored": "DetectorSettings(flip=True) in Python",
    "--no-mirrored": "DetectorSettings(flip=False) in Python",
    "--optimiser": "EpochSettings(optimizer=...) of sppnet.classification.epochs in Python",
    "--held-out": "--validation-share",
    "--stride": "--backbone-stride",
    "--regression": "'sppnet train svm MODEL DATA'",
    "--add-class": "'sppnet train add-class MODEL NAME DATA'",
    "--mapping": "benchmarks/window_mappings.py",
    "--at-most": "--limit",
}
ONLY_IN_PYTHON = ("--levels", "--hidden", "--batch-size", "--learning-rate", "--seed", "--checkpoint-interval")


def main(words: Sequence[str] | None = None) -> None:
    """Run the command line and exit."""
    if isinstance(sys.stdout, TextIOWrapper):
        sys.stdout.reconfigure(errors="surrogateescape")  # file names may be any bytes; they come out as they are
    with suppress(ValueError):  # not in the main thread
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that what is unfinished is removed
    gc.disable()  # while PyTorch is imported: searching what it makes for cycles takes a sixth of a short run
    sys.exit(run(sys.argv[1:] if words is None else words))


def run(words: Sequence[str]) -> int:
    """Run one command line; the exit status."""
    words = list(words)
    if ALLOW_TRUNCATED in words and "compress" not in words:  # of all commands that read images
        words.remove(ALLOW_TRUNCATED)
        os.environ["SPPNET_ALLOW_TRUNCATED"] = "1"  # for processes that load data, too
    try:
        command, given, _ = app.parse_args(words, exit_on_error=False, print_error=False)
        if not gc.isenabled():  # what is imported stays
            gc.freeze()
            gc.enable()
        status = command(*given.args, **given.kwargs)
        sys.stdout.flush()
    except UserError as error:
        return complain(str(error))
    except CycloptsError as error:
        return complain(_wrong_words(str(error), words))
    except KeyboardInterrupt:
        print("\nstopped; what was finished is cached, and the same command goes on from there", file=sys.stderr)
        return 130
    except BrokenPipeError:  # the reader of our output has gone, as in `| head`
        sys.stderr.close()
        return 0
    except OSError as error:  # a full disk behind standard output, or a place that cannot be read
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # which may take no more at exit
        where, reason = error.filename or "standard output", error.strerror or error
        return complain(f"{where}: {reason}; make room, or check the place")
    return int(status or 0)


def complain(message: str) -> int:
    """One line on standard error; the exit status of a user's mistake."""
    print(f"sppnet: {printable(' '.join(message.split()))}", file=sys.stderr)
    return 2


def _wrong_words(message: str, words: Sequence[str]) -> str:
    """What the parser says, and what an option of an earlier version is called now."""
    found = re.search(r"(--[a-z-]+)", message)
    new = RENAMED.get(found[1]) if found else None
    if found and found[1] in ONLY_IN_PYTHON:
        name = found[1][2:].replace("-", "_")
        new = f"{'Classifier' if 'classifier' in words else 'Detector'}Settings({name}=...) in Python"
    if found and found[1] == "--classifier" and "detector" in words:
        new = "'sppnet train svm MODEL DATA'"
    if found and new:
        return f"{found[1]} is now {new}; see 'sppnet {' '.join(word for word in words[:2] if word.isalpha())} --help'"
    return f"{message.rstrip('.')}; see 'sppnet --help'"
