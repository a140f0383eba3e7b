"""How a classifier learns: the settings of a training, in one place. Used by `sppnet.classification.train`."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal, get_args

from sppnet.classification.schedule import TrainingSizes
from sppnet.errors import UserError

Learn = Literal["head", "all"]
Optimiser = Literal["adamw", "sgd"]
Precision = Literal["auto", "bfloat16", "float32"]

RANDOM = "random"  # for the name of a backbone's weights: none that have learned


@dataclass(frozen=True)
class ClassifierSettings:
    """How a classifier learns.

    ``learn="head"`` keeps the backbone as it is: every image and its mirror image go through it once, and the fully
    connected layers learn from what was pooled; the fields marked "all" mean nothing then. ``learn="all"`` trains the
    whole network on images that are cut, resized and changed anew in every epoch. A model of SVMs
    (`sppnet.classification.svm_head`) learns with ``learn="head"``, and of the rest uses the seed and the held-out share.

    Raises:
        UserError: a setting out of its range.

    Example:
        >>> ClassifierSettings(epochs=0)
        Traceback (most recent call last):
        sppnet.errors.UserError: epochs must be at least 1: got 0
    """

    learn: Learn = "head"
    epochs: int = 30
    batch_size: int = 32  # images on each device
    optimiser: Optimiser = "adamw"  # "sgd": momentum 0.9, as Krizhevsky et al., 2012, whom the paper follows
    learning_rate: float = 1e-3  # peak; "sgd" wants 1e-2 (paper, section 3.1)
    backbone_rate: float = 0.1  # all: the backbone's learning rate, as a share; 1 where it learns from random weights
    weight_decay: float = 1e-2  # not of biases and norms; "sgd" wants 5e-4
    sizes: TrainingSizes = field(default_factory=TrainingSizes)  # all
    least_region: float = 0.4  # all, native sizes: at least this share of an image's area is seen, 0 to 1; 1: all of it
    light: float = 0.1  # all: deviation of the colour shift, of the principal axes (paper, section 3.1); 0: none
    held_out_share: float = 0.15  # of every class, where no held-out images are given
    precision: Precision = (
        "auto"  # of matrix products and convolutions; auto: bfloat16 where the processor is fast at it
    )
    checkpoint_every: int = 100  # steps; a run that was stopped goes on from the last of these
    seed: int = 0

    def __post_init__(self) -> None:
        for name, kind in (("learn", Learn), ("optimiser", Optimiser), ("precision", Precision)):
            choices = get_args(kind)
            if getattr(self, name) not in choices:
                raise UserError(f"{name} must be one of {', '.join(choices)}: got {getattr(self, name)!r}")
        for name in ("epochs", "batch_size", "checkpoint_every"):
            if getattr(self, name) < 1:
                raise UserError(f"{name} must be at least 1: got {getattr(self, name)}")
        for name in ("learning_rate", "held_out_share"):
            if not 0 < getattr(self, name) < 1:
                raise UserError(f"{name} must be between 0 and 1: got {getattr(self, name)}")
        for name in ("backbone_rate", "least_region"):
            if not 0 < getattr(self, name) <= 1:
                raise UserError(f"{name} must be above 0 and at most 1: got {getattr(self, name)}")
        if self.weight_decay < 0 or self.light < 0:
            raise UserError(f"weight_decay and light must be 0 or more: got {self.weight_decay} and {self.light}")
        if not 0 <= self.seed < 2**32:
            raise UserError(f"seed must be a whole number from 0 to {2**32 - 1}: got {self.seed}")
        if self.learn == "head" and self.sizes.rule != "native":
            raise UserError(
                f"training sizes {self.sizes.rule!r} need learn='all': where the backbone does not learn, each image goes "
                "through it once, at its own size"
            )
