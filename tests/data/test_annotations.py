"""The one form of annotations refuses arrays that do not belong together."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from sppnet.data.annotations import AnnotatedImage, DetectionData


def test_shapes_must_agree() -> None:
    boxes, labels, difficult = np.zeros((2, 4), np.float32), np.array([1, 2]), np.array([False, True])
    image = AnnotatedImage("a", Path("a.jpg"), (10, 20), boxes, labels, difficult)
    assert len(DetectionData(names=("cat", "dog"), images=(image,), split="train")) == 1
    for wrong in ((boxes[:1], labels, difficult), (boxes, labels, difficult[:1]), (boxes[:, :3], labels, difficult)):
        with pytest.raises(ValueError, match="a: expected gt_boxes"):
            AnnotatedImage("a", Path("a.jpg"), (10, 20), *wrong)
