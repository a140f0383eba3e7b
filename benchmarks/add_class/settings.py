"""What is trained on what: the settings of one comparison, and the images with and without the class that is left out."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from sppnet.data.annotations import AnnotatedImage, DetectionData
from sppnet.data.dataset import read_annotated
from sppnet.errors import UserError
from sppnet.models.backbones import OWN
from sppnet.models.files import SHIPPED
from sppnet.models.sppnet import Architecture


@dataclass(frozen=True)
class Settings:
    """One comparison; all but ``data`` and ``weights`` by their names.

    Raises:
        UserError: a number below 1, or one split for both.
    """

    data: Path
    name: str = "motorbike"  # of the class that comes last
    train_split: str = "train"
    test_split: str = "val"
    images: int | None = None  # to learn from, the first so many; None: all
    test_images: int | None = None  # to test on, likewise
    backbone: str = "mobilenet_v2"
    weights: str | None = (
        None  # a file, or a name that torchvision knows; None: of "compact" the shipped ones, else random
    )
    levels: tuple[int, ...] = (3, 2, 1)
    hidden: tuple[int, ...] = (1024, 1024)
    short_side: int = 600  # pixels
    long_side: int = 1000
    proposer: str = "edge-boxes"
    steps: int = 2500  # of fine-tuning the fully connected layers, of both detectors
    mirrored: bool = True
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("images", "test_images", "short_side", "long_side", "steps"):
            number = getattr(self, name)
            if number is not None and number < 1:
                raise UserError(f"{name} must be at least 1: got {number}")
        if self.train_split == self.test_split:
            raise UserError(f"expected two splits, to learn from and to test on: got {self.train_split!r} twice")

    def to_dict(self) -> dict[str, Any]:
        """In JSON's types; of paths the last part alone."""
        told = dataclasses.asdict(self)
        told["data"] = self.data.name
        told["weights"] = None if self.weights is None else Path(self.weights).name
        settings: dict[str, Any] = json.loads(json.dumps(told))
        return settings

    @property
    def key(self) -> str:
        """Names what is trained by these settings."""
        return hashlib.blake2b(json.dumps(self.to_dict(), sort_keys=True).encode(), digest_size=4).hexdigest()

    @property
    def learned(self) -> str | Path | None:
        """The backbone's weights, as `sppnet.models.backbones.build_backbone` takes them."""
        return SHIPPED["voc"] if self.backbone == OWN and self.weights is None else self.weights

    def architecture(self, names: tuple[str, ...]) -> Architecture:
        """The detector of these classes."""
        return Architecture(
            names, self.backbone, self.levels, self.hidden, short_side=self.short_side, long_side=self.long_side,
            proposer=self.proposer,
        )  # fmt: skip


@dataclass(frozen=True, eq=False)
class Splits:
    """The images of one comparison.

    Images that show the class, and be it as a difficult object, are not in ``old``: a detector that saw unnamed objects of the class
    would have learned that they are background. They come last in ``everything``, so that the features of both detectors are scaled
    by the same first images (`sppnet.detection.train.calibrate`), and one cache of maps serves all parts.
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
