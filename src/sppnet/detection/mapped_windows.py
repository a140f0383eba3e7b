"""The windows of many images, described from their cached maps when they are asked for: what SVMs and box regressors learn from.

Nothing but the name of its maps' file is held of an image: its proposals, overlaps and features come and go with its turn.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from torch import Tensor

from sppnet.cache import Part, fingerprint
from sppnet.data.annotations import AnnotatedImage
from sppnet.detection.image_windows import ImageWindows, WindowsOfImages, describe_boxes
from sppnet.detection.map_cache import MapCache
from sppnet.models.sppnet import SPPNet
from sppnet.proposals.files import load_proposals


class MappedWindows(WindowsOfImages):
    """Images as `sppnet.detection.svm` and `sppnet.detection.box_regression` take them.

    Args:
        model: describes the windows.
        cache: reads the maps.
        images: the images and their objects.
        proposals: the proposals' file of each.
        maps: the maps' file of each.
        label: only this class, 1..K of the images' labels, which becomes 1; 0: all, as they are.
        classes: K; 1 where there is a ``label``.
        pooled: describe windows by what was pooled, and not by what the fully connected layers make of it.
    """

    def __init__(
        self,
        model: SPPNet,
        cache: MapCache,
        images: Sequence[AnnotatedImage],
        proposals: Sequence[Path],
        maps: Sequence[Path],
        *,
        classes: int,
        label: int = 0,
        pooled: bool = False,
    ) -> None:
        if not len(images) == len(proposals) == len(maps):
            raise ValueError(
                f"expected proposals and a map of each image, got {len(images)}, {len(proposals)}, {len(maps)}"
            )
        super().__init__(images)
        self.model, self.cache, self.pooled = model, cache, pooled
        self.proposals, self.maps = proposals, maps
        self.classes, self.label = classes, label

    def windows_of(self, index: int) -> ImageWindows:
        image, path = self._of_label(self.images[index]), self.maps[index]

        def describe(boxes: Tensor) -> Tensor:
            return describe_boxes(self.model, self.cache.read(path).to(self.model.device), boxes, pooled=self.pooled)

        return ImageWindows.of(image, load_proposals(self.proposals[index])[0], self.classes, describe)

    def fingerprint(self) -> str:
        """Names all that the windows come from: objects, proposals, maps, and the layers that describe them."""
        return fingerprint(self._made_of(), size=8)

    def _made_of(self) -> Iterator[Part]:
        settings = self.model.architecture
        yield repr((self.classes, self.label, self.pooled, settings.levels))
        yield repr((settings.scale_rule, settings.mapping))
        yield self.model.fully_connected.state_dict()
        for image, proposals, path in zip(self.images, self.proposals, self.maps, strict=True):
            yield f"{path.parent.name}/{path.name}"
            yield from (load_proposals(proposals)[0], image.gt_boxes, image.gt_labels, image.difficult)

    def _of_label(self, image: AnnotatedImage) -> AnnotatedImage:
        if not self.label:
            return image
        wanted = image.gt_labels == self.label
        labels = np.ones(int(wanted.sum()), np.int64)
        return AnnotatedImage(
            image.image_id, image.path, image.size, image.gt_boxes[wanted], labels, image.difficult[wanted]
        )
