"""The made-up data set says what it shows: boxes read from it touch the shapes on all four sides."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from sppnet.data.formats.voc import read as read_voc


def test_boxes_fit_the_shapes_to_the_pixel(tiny_voc: Path) -> None:
    """So a reader that is off by one, from 1-based corners or inclusive ends, is found out by the pixels themselves."""
    for split in ("train", "val"):
        for image in read_voc(tiny_voc, split).images:
            pixels = np.asarray(Image.open(image.path)).astype(int)
            coloured = pixels.max(axis=2) - pixels.min(axis=2) > 80
            for x0, y0, x1, y1 in image.gt_boxes.astype(int):
                inside = coloured[y0:y1, x0:x1]
                assert inside[0].any()
                assert inside[-1].any()
                assert inside[:, 0].any()
                assert inside[:, -1].any()
                coloured[y0:y1, x0:x1] = False
            assert not coloured.any(), image.image_id


def test_splits_and_labels(tiny_voc: Path) -> None:
    train, val = read_voc(tiny_voc, "train"), read_voc(tiny_voc, "val")
    assert train.class_names == val.class_names == ("circle", "square")
    assert (len(train), len(val)) == (8, 4)
    labels = np.concatenate([image.gt_labels for image in train.images])
    assert set(labels.tolist()) == {1, 2}
    assert sum(image.difficult.sum() for image in train.images) == 0
    assert sum(image.difficult.sum() for image in val.images) == 1
    assert len({image.size for image in (*train.images, *val.images)}) == 12
