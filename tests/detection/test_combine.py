"""Several detectors as one: the union of their boxes, one suppression; what cannot be combined is said."""

from __future__ import annotations

import copy
import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from sppnet.detection.combine import check_combination, detect_with_several, union

from sppnet.data.formats.voc import read as read_voc
from sppnet.detection.evaluate import evaluate_detector
from sppnet.detection.linear_stages import store_svms
from sppnet.detection.predict import detect
from sppnet.detection.svm import LinearSVMs
from sppnet.errors import UserError
from sppnet.models.sppnet import SPPNet

IMAGE = np.random.default_rng(0).integers(0, 255, (90, 120, 3), dtype=np.uint8)


@pytest.fixture(scope="module")
def other(tiny_detector: SPPNet) -> SPPNet:
    """The same kind of detector with other random weights, another proposer's size, and its classes turned round."""
    names = tiny_detector.class_names[::-1]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        return SPPNet(dataclasses.replace(tiny_detector.architecture, names=names)).eval()


def test_a_model_with_itself_finds_what_it_finds_alone(tiny_detector: SPPNet) -> None:
    alone = detect(IMAGE, tiny_detector, score_threshold=0.2)
    twice = detect_with_several(IMAGE, [tiny_detector, tiny_detector], score_threshold=0.2)
    assert len(alone) > 0
    np.testing.assert_array_equal(twice.scores, alone.scores)
    np.testing.assert_allclose(twice.boxes, alone.boxes, rtol=1e-6)  # votes are summed in another order
    assert twice.names == alone.names


def test_the_union_is_of_classes_by_name(tiny_detector: SPPNet, other: SPPNet) -> None:
    scores = torch.tensor([[0.1, 0.6, 0.3]])
    boxes = torch.arange(8.0).reshape(1, 2, 4)
    both, moved = union([tiny_detector, other], [(scores, boxes), (scores, boxes)])
    assert both.tolist() == [scores[0].tolist(), scores[0, [0, 2, 1]].tolist()]
    assert moved[1].tolist() == boxes[0, [1, 0]].tolist()


def test_of_overlapping_boxes_the_surer_stays_whichever_model_it_is_of(tiny_detector: SPPNet, other: SPPNet) -> None:
    proposals = np.array([[10, 10, 80, 80]], np.float32)
    each = [detect(IMAGE, net, score_threshold=0, proposals=proposals) for net in (tiny_detector, other)]
    both = detect_with_several(IMAGE, [tiny_detector, other], score_threshold=0, proposals=proposals)
    for name in ("circle", "square"):
        best = max(d.score for found in each for d in found if d.name == name)
        assert max(d.score for d in both if d.name == name) == pytest.approx(best)


def test_several_are_evaluated_as_one(tiny_detector: SPPNet, other: SPPNet, tiny_voc: Path, tmp_path: Path) -> None:
    data = read_voc(tiny_voc, "val")
    alone = evaluate_detector(tiny_detector, data, tmp_path)
    twice = evaluate_detector([tiny_detector, tiny_detector], data, tmp_path)
    assert twice.result.map_area == pytest.approx(alone.result.map_area, abs=0.02)  # bfloat16
    assert twice.whole_images.map_area == pytest.approx(alone.whole_images.map_area)
    both = evaluate_detector([tiny_detector, other], data, tmp_path)
    assert sum(c.n_detections for c in both.result.classes) > 0


def test_what_cannot_be_combined(tiny_detector: SPPNet) -> None:
    renamed, classifier, svm = (copy.deepcopy(tiny_detector) for _ in range(3))
    renamed.architecture = dataclasses.replace(renamed.architecture, names=("circle", "star"))
    classifier.architecture = dataclasses.replace(classifier.architecture, detects=False)
    store_svms(svm, LinearSVMs(torch.zeros(2, 16), torch.zeros(2), 1.0))
    with pytest.raises(UserError, match=r"only in the first \['square'\], only in model 2 \['star'\]"):
        check_combination([tiny_detector, renamed])
    with pytest.raises(UserError, match="classifies only"):
        check_combination([tiny_detector, classifier])
    with pytest.raises(UserError, match="model 2's are margin, the first's probability"):
        check_combination([tiny_detector, svm])
    with pytest.raises(UserError, match="no model given"):
        check_combination([])
