"""The one form of annotations refuses arrays that do not belong together."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from sppnet.data.annotations import AnnotatedImage, DetectionData
from sppnet.errors import UserError


def test_shapes_must_agree() -> None:
    boxes, labels, difficult = np.zeros((2, 4), np.float32), np.array([1, 2]), np.array([False, True])
    image = AnnotatedImage("a", Path("a.jpg"), (10, 20), boxes, labels, difficult)
    assert len(DetectionData(class_names=("cat", "dog"), images=(image,), split="train")) == 1
    for wrong in ((boxes[:1], labels, difficult), (boxes, labels, difficult[:1]), (boxes[:, :3], labels, difficult)):
        with pytest.raises(ValueError, match="a: expected gt_boxes"):
            AnnotatedImage("a", Path("a.jpg"), (10, 20), *wrong)


def test_labels_follow_the_order_of_the_names() -> None:
    labels = np.array([1, 3, 2])
    image = AnnotatedImage("a", Path("a.jpg"), (10, 20), np.zeros((3, 4), np.float32), labels, np.zeros(3, bool))
    data = DetectionData(class_names=("cat", "dog", "owl"), images=(image,), split="train")
    other = data.relabelled(("owl", "cat", "dog"))
    assert [other.class_names[label - 1] for label in other.images[0].gt_labels] == ["cat", "owl", "dog"]
    assert labels.tolist() == [1, 3, 2]
    with pytest.raises(UserError, match=r"only in the model \['emu'\], only in the data \['owl'\]"):
        data.relabelled(("cat", "dog", "emu"))
