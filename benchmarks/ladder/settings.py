"""What a ladder is climbed on: images, network and schedules, the same for every rung and seed.

`Settings` -> `Ladder`: the settings, the chosen images of both splits, and the folders. Two runs whose settings differ share proposals
and feature maps below one cache directory, and nothing else: what they train is named by the settings, and results of different
settings never meet in one ``--output`` folder.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.options import check_positive, option
from benchmarks.results_file import read_results, write_results
from sppnet.data import read_annotated
from sppnet.data.annotations import DetectionData
from sppnet.detection.feature_maps import SHORT_SIDES
from sppnet.errors import UserError
from sppnet.models.backbones import RANDOM, pretrained_weights
from sppnet.models.preprocess import Preprocess
from sppnet.models.sppnet import Architecture, DetectionSettings, SPPNet, build_model
from sppnet.progress import Progress, no_progress
from sppnet.proposals.compute import proposals_of

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
        sppnet.errors.UserError: hidden must be whole numbers of at least 1: got ()
    """

    data: Path
    train_split: str = option("train", "train on the images of this split")
    test_split: str = option("val", "test on the images of this split")
    train_images: int | None = option(None, "so many of them, drawn with all classes; all if left out", int)
    test_images: int | None = option(None, "so many of them", int)
    choice_seed: int = option(0, "of the choice of images; not of what is trained on them", int)
    backbone: str = option("efficientnet_lite0", "efficientnet_lite0, or a net of torchvision or timm")
    weights: str | None = option(None, "of the backbone: a file, or a name; pretrained if left out")
    levels: tuple[int, ...] = option((3, 2, 1), "bins per side", int)
    hidden: tuple[int, ...] = option((1024, 1024), "widths of the fully connected layers", int)
    short_side: int = option(688, "pixels, of the single scale (paper: 688)", int)
    long_side: int = option(1200, "pixels, unless the long side would become longer than this", int)
    scales: tuple[int, ...] = option(SHORT_SIDES, "short sides of the several scales", int)
    proposals: str = option("selective-search", "selective-search, grid, edge-boxes, or several joined by +")
    steps: int = option(2500, "of fine-tuning", int)
    images_per_step: int = option(8, "of fine-tuning", int)
    windows_per_image: int = option(64, "of fine-tuning", int)
    learning_rate: float = option(1e-3, "of fine-tuning, at its peak", float)
    flip: bool = option(True, "fine-tune on flipped images too", bool)
    epochs: int = option(6, "end to end, after fine-tuning", int)
    from_layer: str = option(
        "", "the first layer that is trained in e2e-from: a name or an index; the middle one if left out"
    )
    svd_energy: float = option(0.9, "share of what the layers say of windows that truncated ones keep", float)
    rcnn_proposals: int = option(500, "windows an image of R-CNN's SVMs and test, drawn at random; 0: all", int)
    rcnn_windows: int = option(128, "windows an image that R-CNN's fully connected layers are trained on", int)
    device: str = option("cpu", "where to compute")

    def __post_init__(self) -> None:
        for name in ("levels", "hidden", "scales"):
            if not getattr(self, name) or min(getattr(self, name)) < 1:
                raise UserError(f"{name} must be whole numbers of at least 1: got {getattr(self, name)}")
        check_positive(
            self,
            ("train_images", "test_images", "short_side", "long_side", "steps", "images_per_step", "windows_per_image", "epochs", "rcnn_windows"),
        )  # fmt: skip
        if self.rcnn_proposals < 0 or not 0 < self.svd_energy <= 1 or not 0 < self.learning_rate < 1:
            raise UserError(
                "expected rcnn_proposals of at least 0, svd_energy above 0 and at most 1, learning_rate between 0 and 1: got "
                f"{self.rcnn_proposals}, {self.svd_energy} and {self.learning_rate}"
            )
        if self.train_split == self.test_split:
            raise UserError(f"expected two splits, to train on and to test on: got {self.train_split!r} twice")

    def to_dict(self) -> dict[str, Any]:
        """In JSON's types; of paths the last part.

        Example:
            >>> Settings(Path("some/where/VOC2007"), weights="some/net.safetensors").to_dict()["weights"]
            'net.safetensors'
        """
        fields = dataclasses.asdict(self) | {"data": self.data.name}
        fields["weights"] = None if self.weights is None else Path(self.weights).name
        return dict(json.loads(json.dumps(fields)))


@dataclass(frozen=True, eq=False)
class Ladder:
    """The settings with the images and folders that go with them."""

    settings: Settings
    train: DetectionData
    test: DetectionData
    cache: Path  # proposals, feature maps and models; other trainings may share it

    @classmethod
    def of(cls, settings: Settings, cache: Path) -> Ladder:
        """Read both splits, and choose the images.

        Raises:
            UserError: what `read_annotated` raises; or classes that differ between the splits.
        """
        train = read_annotated(settings.data, settings.train_split)
        test = read_annotated(settings.data, settings.test_split).relabelled(train.class_names)
        return cls(
            settings,
            choose_images(train, settings.train_images, settings.choice_seed),
            choose_images(test, settings.test_images, settings.choice_seed),
            cache,
        )

    @cached_property
    def key(self) -> str:
        """Names what is trained: by these settings, of these images."""
        told = {name: value for name, value in self.settings.to_dict().items() if name not in NOT_IN_KEY}
        return _digest([told, self.train.class_names, [image.image_id for image in self.train.images]])

    @property
    def folder(self) -> Path:
        """Models and records of steps."""
        return self.cache / f"ladder-{self.key}"

    @property
    def maps(self) -> Path:
        return self.cache / "feature-maps"

    @property
    def weights(self) -> str | Path:
        return self.settings.weights or pretrained_weights(self.settings.backbone)

    @property
    def of_one_seed(self) -> bool:
        """Whether the backbone is another for every seed."""
        return self.weights == RANDOM

    @property
    def plan(self) -> dict[str, Any]:
        """What all results of one folder share."""
        tested = _digest([image.image_id for image in self.test.images])
        return {**self.settings.to_dict(), "tested on": tested, "key": self.key}

    def proposals(self, data: DetectionData, progress: Progress = no_progress) -> list[np.ndarray]:
        """Of the images of a split; missing ones are computed."""
        return proposals_of(data, self.settings.proposals, self.cache, progress)

    def network(self, family: str, backbone: Any, hidden: tuple[int, ...] | None = None) -> SPPNet:
        """The network of a family: "spp1", maps of one scale; "spp5", of several. ``hidden``, where given, in place of its widths."""
        settings = self.settings
        return build_model(
            Architecture(
                self.train.class_names,
                settings.backbone,
                settings.levels,
                settings.hidden if hidden is None else hidden,
            ),
            Preprocess(settings.short_side, settings.long_side),
            DetectionSettings(settings.proposals, settings.scales if family == "spp5" else ()),
            backbone=backbone,
        )


def keep_plan(ladder: Ladder, output: Path) -> None:
    """Write the plan into the folder of results; refuse a folder that holds those of another.

    Raises:
        UserError: results of other settings or images; the first difference is named.
    """
    known, wanted = read_results(output / PLAN), ladder.plan
    for name in dict.fromkeys([*wanted, *known]) if known else ():
        if wanted.get(name) != known.get(name):
            raise UserError(
                f"{output} holds results of other settings ({name}: {known.get(name)!r} there, {wanted.get(name)!r} asked "
                "for): give another --output, or the same settings"
            )
    write_results(output / PLAN, wanted)


def choose_images(data: DetectionData, count: int | None, seed: int) -> DetectionData:
    """Some images, with the classes in about the shares that they have in all; the same for the same seed.

    One after another: the class that lacks most of its share gives the next of its images, in an order drawn by ``seed``. An image
    counts for every class in it; images without objects are a class of their own. So rare classes are there in small choices too.

    Args:
        data: to choose from.
        count: at least 1; None, or as many as there are or more: all.
        seed: of the order.

    Returns:
        The images in the order that they have in ``data``.

    Example:
        >>> len(choose_images(DetectionData(class_names=("cat",), images=(), split="train"), 5, seed=0))
        0
    """
    total = len(data.images)
    if count is None or count >= total:
        return data
    shows = np.zeros((total, 1 + len(data.class_names)), bool)  # [N, 1 + K]; column 0: no objects
    for row, image in enumerate(data.images):
        easy = image.gt_labels[~image.difficult]
        shows[row, easy if len(easy) else 0] = True
    wanted = shows.sum(0) * (count / total)
    order = np.random.default_rng(seed).permutation(total)
    left = shows[order]  # rows that are taken become empty
    taken: list[int] = []
    have = np.zeros(shows.shape[1])
    for _ in range(count):
        lack = np.where(left.any(0), (wanted - have) / np.maximum(wanted, 1e-9), -np.inf)
        index = int(left[:, int(lack.argmax())].argmax())
        have += left[index]
        left[index] = False
        taken.append(int(order[index]))
    return replace(data, images=tuple(data.images[row] for row in sorted(taken)))


def _digest(told: list[Any]) -> str:
    return hashlib.blake2b(json.dumps(told, sort_keys=True).encode(), digest_size=4).hexdigest()
