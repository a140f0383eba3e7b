"""What `score_windows` gives, `detect` on images of any size, and several detectors as one."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import numpy as np
import pytest
import torch

from sppnet.detection.feature_maps import choose_scale, compute_feature_maps
from sppnet.detection.predict import check_combination, detect, detect_each, score_windows, union
from sppnet.errors import ModelError, UserError
from sppnet.models.sppnet import SPPNet, build_model
from sppnet.proposals.compute import propose


def test_proposals_on_the_same_cells_get_the_same_scores(tiny_detector: SPPNet) -> None:
    image = np.random.default_rng(0).integers(0, 255, (64, 128, 3), dtype=np.uint8)
    maps = compute_feature_maps(tiny_detector, image)
    assert maps.whole_map.shape[2:] == (2, 4)  # 32 px a cell, centred at 0.5, 32.5, ...
    proposals = np.array([[0, 0, 40, 40], [0, 0, 44, 36], [40, 0, 128, 64], [0, 0, 40, 40]], np.float32)
    scores, boxes = score_windows(tiny_detector, maps, proposals)
    assert scores.shape == (4, 3)
    assert boxes.shape == (4, 2, 4)
    torch.testing.assert_close(scores.sum(1), torch.ones(4))
    assert torch.equal(scores[0], scores[1])
    assert not torch.equal(scores[0], scores[2])
    assert torch.equal(boxes[0], boxes[3])
    assert not torch.equal(boxes[0], boxes[1])  # the same deltas, moving different boxes


def test_scoring_many_at_once_or_few_is_the_same(tiny_detector: SPPNet, monkeypatch: pytest.MonkeyPatch) -> None:
    image = np.random.default_rng(0).integers(0, 255, (100, 120, 3), dtype=np.uint8)
    proposals = propose(image, "grid")
    whole = detect(image, tiny_detector, score_threshold=0)
    monkeypatch.setattr("sppnet.detection.feature_maps.WINDOW_CHUNK", 3)
    parts = detect(image, tiny_detector, score_threshold=0, proposals=proposals)
    np.testing.assert_allclose(whole.scores, parts.scores, atol=2e-2)  # bfloat16, and sums in another order


@pytest.mark.parametrize("size", [(1, 1), (3, 500), (500, 3), (2000, 20), (20000, 20), (64, 64), (333, 217)])
def test_images_of_any_size(tiny_detector: SPPNet, size: tuple[int, int]) -> None:
    image = np.random.default_rng(0).integers(0, 255, (*size, 3), dtype=np.uint8)
    before = image.copy()
    found = detect(image, tiny_detector, score_threshold=0, max_detections=20)
    x0, y0, x1, y1 = found.boxes.T
    assert ((x0 >= 0) & (y0 >= 0) & (x1 <= size[1]) & (y1 <= size[0])).all()
    assert ((x1 - x0 >= 1) & (y1 - y0 >= 1)).all()
    assert (np.diff(found.scores) <= 0).all()
    assert len(found) <= 20
    assert (image == before).all()
    if min(size) >= 64:
        assert len(found) == 20


def test_at_several_scales_every_proposal_is_scored_on_the_map_of_its_own(tiny_detector: SPPNet) -> None:
    scales = (64, 192, 384)
    model = tiny_detector.at_scales(scales)
    image = np.random.default_rng(0).integers(0, 255, (90, 120, 3), dtype=np.uint8)
    proposals = propose(image, "grid")
    maps = compute_feature_maps(model, image)
    scores, boxes = score_windows(model, maps, proposals)
    which = choose_scale(torch.from_numpy(proposals), maps.scales)
    assert len(which.unique()) > 1
    for index, side in enumerate(scales):
        here = which == index
        alone = compute_feature_maps(model, image, (side,))
        expected, expected_boxes = score_windows(model, alone, proposals[here.numpy()])
        torch.testing.assert_close(scores[here], expected, atol=2e-2, rtol=0)  # bfloat16, and sums in another order
        torch.testing.assert_close(boxes[here], expected_boxes, atol=1, rtol=0.05)
    assert len(detect(image, model, score_threshold=0)) > 0


def test_the_same_photo_gives_the_same_boxes(tiny_detector: SPPNet) -> None:
    image = np.random.default_rng(0).integers(0, 255, (90, 120, 3), dtype=np.uint8)
    first, second = (detect(image, tiny_detector).to_dict() for _ in range(2))
    assert first == second
    assert [found.to_dict() for found in detect_each([image] * 2, tiny_detector)] == [first] * 2


def test_what_cannot_be_used_is_said(tiny_detector: SPPNet, variant: Callable[..., SPPNet]) -> None:
    image = np.zeros((64, 64, 3), np.uint8)
    classifier = variant(tiny_detector, detects=False)
    with pytest.raises(UserError, match="classifies only"):
        detect(image, classifier)
    for wrong in (np.zeros((0, 4)), np.zeros(4), np.zeros((2, 5))):
        with pytest.raises(UserError, match=r"proposals must be \[R, 4\]"):
            detect(image, tiny_detector, proposals=wrong)
    with pytest.raises(UserError, match=r"nothing\.jpg: no such file"):
        detect("nothing.jpg", tiny_detector)


# Several detectors as one: the union of their boxes, one suppression


IMAGE = np.random.default_rng(0).integers(0, 255, (90, 120, 3), dtype=np.uint8)


@pytest.fixture(scope="module")
def other(tiny_detector: SPPNet) -> SPPNet:
    """The same kind of detector with other random weights, and its classes the other way round."""
    architecture = dataclasses.replace(tiny_detector.architecture, class_names=tiny_detector.class_names[::-1])
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        return build_model(architecture, tiny_detector.preprocess, tiny_detector.detection).eval()


def test_a_model_with_itself_finds_what_it_finds_alone(tiny_detector: SPPNet) -> None:
    alone = detect(IMAGE, tiny_detector, score_threshold=0.2)
    twice = detect(IMAGE, [tiny_detector, tiny_detector], score_threshold=0.2)
    assert len(alone) > 0
    np.testing.assert_array_equal(twice.scores, alone.scores)
    np.testing.assert_allclose(twice.boxes, alone.boxes, rtol=1e-6)  # votes are summed in another order
    assert twice.class_names == alone.class_names


def test_the_union_is_of_classes_by_name(tiny_detector: SPPNet, other: SPPNet) -> None:
    scores = torch.tensor([[0.1, 0.6, 0.3]])
    boxes = torch.arange(8.0).reshape(1, 2, 4)
    both, moved = union([tiny_detector, other], [(scores, boxes), (scores, boxes)])
    assert both.tolist() == [scores[0].tolist(), scores[0, [0, 2, 1]].tolist()]
    assert moved[1].tolist() == boxes[0, [1, 0]].tolist()


def test_of_overlapping_boxes_the_most_confident_stays_whichever_model_it_is_of(
    tiny_detector: SPPNet, other: SPPNet
) -> None:
    proposals = np.array([[10, 10, 80, 80]], np.float32)
    each = [detect(IMAGE, net, score_threshold=0, proposals=proposals) for net in (tiny_detector, other)]
    both = detect(IMAGE, [tiny_detector, other], score_threshold=0, proposals=proposals)
    for name in ("circle", "square"):
        best = max(d.score for found in each for d in found if d.class_name == name)
        assert max(d.score for d in both if d.class_name == name) == pytest.approx(best)


def test_what_cannot_be_combined(tiny_detector: SPPNet, variant: Callable[..., SPPNet]) -> None:
    renamed = variant(tiny_detector, class_names=("circle", "star"))
    svm = variant(tiny_detector, window_classifier="svm")
    with pytest.raises(ModelError, match=r"only in the first \['square'\], only in model 2 \['star'\]"):
        check_combination([tiny_detector, renamed])
    with pytest.raises(ModelError, match="classifies only"):
        check_combination([tiny_detector, variant(tiny_detector, detects=False)])
    with pytest.raises(ModelError, match="model 2's are decision, the first's probability"):
        check_combination([tiny_detector, svm])
    with pytest.raises(ModelError, match="no model given"):
        check_combination([])
