"""What is trained on what: the settings of one comparison, and the images with and without the class that is left out."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.options import check_positive, option
from sppnet.data import read_annotated
from sppnet.data.annotations import AnnotatedImage, DetectionData
from sppnet.detection.train import LEVELS, DetectorSettings
from sppnet.errors import UserError


@dataclass(frozen=True)
class Settings:
    """One comparison.

    Raises:
        UserError: a number below 1, or one split for both.
    """

    data: Path
    name: str = "motorbike"  # of the class that comes last
    train_split: str = option("train", "train on images of this split")
    test_split: str = option("val", "test on images of this split")
    images: int | None = option(None, "only the first so many to train on", int)
    test_images: int | None = option(None, "only the first so many to test on", int)
    backbone: str = option("mobilenet_v2", "efficientnet_lite0, or a net of torchvision or timm")
    weights: str | None = option(None, "of the backbone, for both: a file, or a name; pretrained if left out")
    levels: tuple[int, ...] = option(LEVELS, "bins per side", int)
    hidden: tuple[int, ...] = option((1024, 1024), "widths of the fully connected layers", int)
    short_side: int = option(600, "pixels, of this project's detectors", int)
    proposals: str = option("edge-boxes", "selective-search, grid, edge-boxes, or several joined by +")
    epochs: int | None = option(None, "of fine-tuning; 2500 steps if left out", int)
    flip: bool = option(True, "fine-tune on flipped images too", bool)
    seed: int = option(0, "of both trainings", int)

    def __post_init__(self) -> None:
        check_positive(self, ("images", "test_images", "short_side", "epochs"))
        if self.train_split == self.test_split:
            raise UserError(f"expected two splits, to train on and to test on: got {self.train_split!r} twice")

    def to_dict(self) -> dict[str, Any]:
        """In JSON's types; of paths the last part alone."""
        told = dataclasses.asdict(self) | {"data": self.data.name}
        told["weights"] = None if self.weights is None else Path(self.weights).name
        settings: dict[str, Any] = json.loads(json.dumps(told))
        return settings

    @property
    def key(self) -> str:
        """Names what is trained by these settings."""
        return hashlib.blake2b(json.dumps(self.to_dict(), sort_keys=True).encode(), digest_size=4).hexdigest()

    def detector(self) -> DetectorSettings:
        """How both detectors are trained: fine-tuned on a frozen backbone, then SVMs and ridge regression."""
        return DetectorSettings(
            "paper", self.backbone, self.weights, self.levels, self.hidden, self.short_side,
            proposals=self.proposals, epochs=self.epochs, flip=self.flip, seed=self.seed,
        )  # fmt: skip


@dataclass(frozen=True, eq=False)
class Splits:
    """The images of one comparison.

    Images that show the class, and be it as a difficult object, are not in ``old``: a detector that saw unnamed objects of the class
    would have learned that they are background. They come last in ``everything``, so that the features of both detectors are scaled
    by the same first images (`sppnet.detection.train`), and one cache of maps serves all parts.
    """

    old: DetectionData  # K - 1 classes; the images that do not show the class
    new: DetectionData  # K classes; the images that do
    everything: DetectionData  # K classes; those of old, then those of new
    test: DetectionData  # K classes
    test_old: DetectionData  # the same images, without the objects of the class

    @classmethod
    def of(cls, settings: Settings) -> Splits:
        """Read both splits.

        Raises:
            UserError: what `read_annotated` raises, no such class, no image with it in a split, or none without.
        """
        train = read_annotated(settings.data, settings.train_split, settings.images)
        test = read_annotated(settings.data, settings.test_split, settings.test_images).relabelled(train.class_names)
        if settings.name not in train.class_names:
            raise UserError(f"the data has no class {settings.name!r}, only {', '.join(train.class_names[:20])}")
        label = train.class_names.index(settings.name) + 1
        for data in (train, test):
            if not any(((image.gt_labels == label) & ~image.difficult).any() for image in data.images):
                raise UserError(
                    f"the {len(data)} images of split {data.split!r} hold no object of class {settings.name!r}: take more images, "
                    "or another class"
                )
        shows = [bool((image.gt_labels == label).any()) for image in train.images]
        images_old = tuple(image for image, there in zip(train.images, shows, strict=True) if not there)
        images_new = tuple(image for image, there in zip(train.images, shows, strict=True) if there)
        if not images_old:
            raise UserError(
                f"every image of split {train.split!r} shows {settings.name!r}: nothing is left for the other classes"
            )
        return cls(
            without_class(replace(train, images=images_old), settings.name),
            replace(train, images=images_new),
            replace(train, images=images_old + images_new),
            test,
            without_class(test, settings.name),
        )


def without_class(data: DetectionData, name: str) -> DetectionData:
    """The same images, without the objects of one class and without its name.

    Example:
        >>> without_class(DetectionData(class_names=("cat", "dog"), images=(), split="train"), "cat").class_names
        ('dog',)
    """
    label = data.class_names.index(name) + 1
    images = tuple(keep_objects(image, image.gt_labels != label) for image in data.images)
    images = tuple(replace(image, gt_labels=image.gt_labels - (image.gt_labels > label)) for image in images)
    return replace(data, class_names=tuple(each for each in data.class_names if each != name), images=images)


def only_class(data: DetectionData, name: str) -> DetectionData:
    """The same images, with the objects of one class alone, whose label is 1.

    Example:
        >>> only_class(DetectionData(class_names=("cat", "dog"), images=(), split="train"), "dog").class_names
        ('dog',)
    """
    label = data.class_names.index(name) + 1
    images = tuple(keep_objects(image, image.gt_labels == label) for image in data.images)
    images = tuple(replace(image, gt_labels=np.ones_like(image.gt_labels)) for image in images)
    return replace(data, class_names=(name,), images=images)


def keep_objects(image: AnnotatedImage, wanted: np.ndarray) -> AnnotatedImage:
    """An image with those of its objects that are wanted: [G] bool."""
    boxes, labels, difficult = image.gt_boxes[wanted], image.gt_labels[wanted], image.difficult[wanted]
    return replace(image, gt_boxes=boxes, gt_labels=labels, difficult=difficult)
