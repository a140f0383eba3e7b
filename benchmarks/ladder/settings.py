"""What a ladder is climbed on: images, network and schedules, the same for every rung and seed.

`Settings` -> `Ladder`: the settings, the chosen images of both splits, and the folders. Two runs whose settings differ share proposals
and maps below one ``--work`` folder, and nothing else: what they train is named by the settings, and results of different settings
never meet in one ``--output`` folder.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from sppnet.detection.scales import SHORT_SIDES
from sppnet.terminal import write_json

from benchmarks.ladder.choose import choose_images
from sppnet.data.annotations import DetectionData
from sppnet.data.dataset import read_annotated
from sppnet.errors import UserError
from sppnet.models.sppnet import Architecture

PLAN = "plan.json"  # in the output folder: the settings of its results
# What only some steps depend on, or none: those steps have it in their names.
NOT_IN_KEY = ("test_split", "test_images", "epochs", "from_layer", "svd_energy", "rcnn_proposals", "rcnn_windows")


@dataclass(frozen=True)
class Settings:
    """Everything but the rungs, the seeds and the folders.

    Raises:
        UserError: a number that cannot be.

    Example:
        >>> Settings(Path("VOC2007"), hidden=())
        Traceback (most recent call last):
        sppnet.errors.UserError: hidden: expected the widths of one fully connected layer or more, each at least 1: got ()
    """

    data: Path
    train_split: str = "train"
    test_split: str = "val"
    train_images: int | None = None  # None: all
    test_images: int | None = None
    choice_seed: int = 0  # of the choice of images; not of what is learned from them
    backbone: str = "compact"
    weights: str | None = (
        None  # a file, or a name that torchvision knows; None: of "compact" the shipped ones, else random
    )
    levels: tuple[int, ...] = (3, 2, 1)
    hidden: tuple[int, ...] = (1024, 1024)
    short_side: int = 688  # pixels, of the single scale (paper: 688)
    long_side: int = 1200  # pixels, unless the long side would become longer than this
    scales: tuple[int, ...] = SHORT_SIDES  # pixels, short sides of the several
    proposer: str = "selective-search"
    steps: int = 2500  # of fine-tuning
    images_per_step: int = 8
    windows_per_image: int = 64
    learning_rate: float = 1e-3
    mirrored: bool = True  # fine-tune on mirror images too
    epochs: int = 6  # end to end
    from_layer: str = ""  # end to end, the first layer that learns in the rung between; "": the middle one
    svd_energy: float = 0.9  # share of what the fully connected layers say of windows that the truncated ones keep
    rcnn_proposals: int = 500  # windows an image of R-CNN's SVMs and test, drawn at random; 0: all
    rcnn_windows: int = 128  # windows an image that R-CNN's fully connected layers learn from
    device: str = "cpu"

    def __post_init__(self) -> None:
        for name in ("levels", "hidden", "scales"):  # lists of a command line
            object.__setattr__(self, name, tuple(getattr(self, name)))
            if not getattr(self, name) or min(getattr(self, name)) < 1:
                what = {
                    "levels": "levels",
                    "hidden": "the widths of one fully connected layer or more",
                    "scales": "sides",
                }
                raise UserError(f"{name}: expected {what[name]}, each at least 1: got {getattr(self, name)}")
        for name in (
            "short_side",
            "long_side",
            "steps",
            "images_per_step",
            "windows_per_image",
            "epochs",
            "rcnn_windows",
        ):
            if getattr(self, name) < 1:
                raise UserError(f"{name} must be at least 1: got {getattr(self, name)}")
        for name in ("train_images", "test_images"):
            number = getattr(self, name)
            if number is not None and number < 1:
                raise UserError(f"{name} must be at least 1, or left out for all: got {number}")
        if self.rcnn_proposals < 0 or not 0 < self.svd_energy <= 1 or not 0 < self.learning_rate < 1:
            raise UserError(
                "expected rcnn_proposals of at least 0, svd_energy above 0 and at most 1, learning_rate between 0 and 1: got "
                f"{self.rcnn_proposals}, {self.svd_energy} and {self.learning_rate}"
            )

    def to_dict(self) -> dict[str, Any]:
        """In JSON's types; of paths the last part.

        Example:
            >>> Settings(Path("some/where/VOC2007"), weights="some/net.safetensors").to_dict()["weights"]
            'net.safetensors'
        """
        fields = dataclasses.asdict(self) | {"data": self.data.name}
        fields["weights"] = None if self.weights is None else Path(self.weights).name
        told: dict[str, Any] = json.loads(json.dumps(fields))
        return told


@dataclass(frozen=True, eq=False)
class Ladder:
    """The settings with the images and folders that go with them."""

    settings: Settings
    train: DetectionData
    test: DetectionData
    work: Path  # proposals, maps and checkpoints, shared with other trainings

    @classmethod
    def of(cls, settings: Settings, work: Path) -> Ladder:
        """Read both splits, and choose the images.

        Raises:
            UserError: what `read_annotated` raises; one split named for both; or classes that differ between them.
        """
        if settings.train_split == settings.test_split:
            raise UserError(f"expected two splits, to learn from and to test on: got {settings.train_split!r} twice")
        train = read_annotated(settings.data, settings.train_split)
        test = read_annotated(settings.data, settings.test_split)
        test = test.relabelled(train.class_names)
        return cls(
            settings,
            choose_images(train, settings.train_images, settings.choice_seed),
            choose_images(test, settings.test_images, settings.choice_seed),
            work,
        )

    @cached_property
    def key(self) -> str:
        """Names what is trained: by these settings, of these images."""
        told = {name: value for name, value in self.settings.to_dict().items() if name not in NOT_IN_KEY}
        return _digest([told, self.train.class_names, [image.image_id for image in self.train.images]])

    @property
    def folder(self) -> Path:
        """Models and records of steps."""
        return self.work / f"ladder-{self.key}"

    @property
    def plan(self) -> dict[str, Any]:
        """What all results of one folder share."""
        return {
            **self.settings.to_dict(),
            "tested on": _digest([image.image_id for image in self.test.images]),
            "key": self.key,
        }

    @property
    def weights(self) -> str | Path | None:
        from sppnet.models.backbones import OWN
        from sppnet.models.files import SHIPPED

        own = self.settings.backbone == OWN and self.settings.weights is None
        return SHIPPED["voc"] if own else self.settings.weights

    def architecture(self, family: str, hidden: tuple[int, ...] | None = None) -> Architecture:
        """The network of a family: "spp1", maps of one scale; "spp5", of several. ``hidden``, where given, in place of its widths."""
        settings = self.settings
        return Architecture(
            self.train.class_names, settings.backbone, settings.levels, settings.hidden if hidden is None else hidden,
            short_side=settings.short_side, long_side=settings.long_side, proposer=settings.proposer,
            scales=settings.scales if family == "spp5" else (),
        )  # fmt: skip


def keep_plan(ladder: Ladder, output: Path) -> None:
    """Write the plan into the folder of results; refuse a folder that holds those of another.

    Raises:
        UserError: results of other settings or images; the first difference is named.
    """
    path, wanted = output / PLAN, ladder.plan
    if path.is_file():
        known = json.loads(path.read_text(encoding="utf-8"))
        for name in dict.fromkeys([*wanted, *known]):
            if wanted.get(name) != known.get(name):
                raise UserError(
                    f"{output} holds results of other settings ({name}: {known.get(name)!r} there, {wanted.get(name)!r} asked "
                    "for): give another --output, or the same settings"
                )
        return
    write_json(path, wanted)


def _digest(told: list[Any]) -> str:
    return hashlib.blake2b(json.dumps(told, sort_keys=True).encode(), digest_size=4).hexdigest()
