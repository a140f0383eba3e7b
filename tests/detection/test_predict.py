"""From scores to boxes: what `select` keeps, what `score_windows` gives, and `detect` on images of any size."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from torch import Tensor

from sppnet.detection.feature_maps import compute_feature_maps
from sppnet.detection.predict import Stopwatch, detect, detect_in_maps, score_windows, select
from sppnet.detection.scales import choose_scale
from sppnet.errors import UserError
from sppnet.models.sppnet import SPPNet
from sppnet.proposals.compute import propose
from sppnet.results import Detections

NAMES = ("cat", "dog")
BOXES = torch.tensor([[0.0, 0, 10, 10], [0, 0, 10, 9], [50, 50, 60, 60]])  # the first two overlap by .9


def chosen(scores: list[list[float]], boxes: Tensor = BOXES, **changes: float) -> Detections:
    settings = {"score_threshold": 0.3, "nms_iou": 0.3, "most": 100, **changes}
    per_class = boxes[:, None].repeat(1, len(NAMES), 1)
    return select(torch.tensor(scores), per_class, NAMES, settings["score_threshold"], settings["nms_iou"], int(settings["most"]), vote_iou=0)  # fmt: skip


def test_scores_below_the_threshold_are_left_out() -> None:
    found = chosen([[0.5, 0.3, 0.2], [0.8, 0.1, 0.1], [0.1, 0.0, 0.9]])
    assert list(zip(found.names, found.labels.tolist(), strict=True)) == [("dog", 2), ("cat", 1)]
    assert found.scores.tolist() == pytest.approx([0.9, 0.3])  # by falling score; one at the threshold stays
    assert found.boxes.tolist() == [[50, 50, 60, 60], [0, 0, 10, 10]]


def test_the_better_of_two_overlapping_boxes_of_a_class_stays() -> None:
    found = chosen([[0.4, 0.6, 0], [0.3, 0.7, 0], [1, 0, 0]])
    assert found.boxes.tolist() == [[0, 0, 10, 9]]
    assert len(chosen([[0.4, 0.6, 0], [0.3, 0.7, 0], [1, 0, 0]], nms_iou=0.95)) == 2


def test_overlapping_boxes_of_different_classes_both_stay() -> None:
    found = chosen([[0.4, 0.6, 0], [0.3, 0, 0.7], [1, 0, 0]])
    assert found.names == ("dog", "cat")


def test_one_box_may_be_two_classes() -> None:
    assert chosen([[0.1, 0.5, 0.4], [1, 0, 0], [1, 0, 0]]).names == ("cat", "dog")


def test_at_most_so_many_the_best() -> None:
    found = chosen([[0.5, 0.5, 0], [1, 0, 0], [0.4, 0, 0.6]], most=1)
    assert found.names == ("dog",)


def test_a_kept_box_goes_where_its_neighbours_vote_for() -> None:
    scores, per_class = torch.tensor([[0.25, 0.75, 0], [0.75, 0.25, 0], [1, 0, 0]]), BOXES[:, None].repeat(1, 2, 1)
    found = select(scores, per_class, NAMES, 0.3, 0.3, 100, vote_iou=0.5)  # also those below the threshold vote
    assert found.boxes.tolist() == [[0, 0, 10, 9.75]]
    assert found.scores.tolist() == [0.75]


def test_nothing_found() -> None:
    found = chosen([[1, 0, 0]] * 3)
    assert len(found) == 0
    assert found.to_dict() == {"boxes": [], "scores": [], "score_kind": "probability", "labels": [], "class_names": []}


def test_slivers_are_dropped() -> None:
    found = chosen([[0.0, 1, 0]] * 2, torch.tensor([[0.0, 0, 0.5, 100], [0, 0, 1, 100]]))
    assert found.boxes.tolist() == [[0, 0, 1, 100]]


def test_proposals_on_the_same_cells_get_the_same_scores(tiny_detector: SPPNet) -> None:
    image = np.random.default_rng(0).integers(0, 255, (64, 128, 3), dtype=np.uint8)
    maps = compute_feature_maps(tiny_detector, image)
    assert maps.whole_map.shape[2:] == (2, 4)  # 32 px a cell, centred at 0.5, 32.5, ...
    proposals = np.array([[0, 0, 40, 40], [0, 0, 44, 36], [40, 0, 128, 64], [0, 0, 40, 40]], np.float32)
    scores, boxes = score_windows(tiny_detector, maps, proposals, Stopwatch())
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
    monkeypatch.setattr("sppnet.detection.predict.WINDOW_CHUNK", 3)
    parts = detect(image, tiny_detector, score_threshold=0, proposals=proposals)
    np.testing.assert_allclose(whole.scores, parts.scores, atol=2e-2)  # bfloat16, and sums in another order


@pytest.mark.parametrize("size", [(1, 1), (3, 500), (500, 3), (2000, 20), (20000, 20), (64, 64), (333, 217)])
def test_images_of_any_size(tiny_detector: SPPNet, size: tuple[int, int]) -> None:
    image = np.random.default_rng(0).integers(0, 255, (*size, 3), dtype=np.uint8)
    before = image.copy()
    found = detect(image, tiny_detector, score_threshold=0, most=20)
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
    model = SPPNet(dataclasses.replace(tiny_detector.architecture, scales=scales), tiny_detector.backbone).eval()
    model.load_state_dict(tiny_detector.state_dict())
    image = np.random.default_rng(0).integers(0, 255, (90, 120, 3), dtype=np.uint8)
    proposals = propose(image, "grid")
    maps = compute_feature_maps(model, image)
    scores, boxes = score_windows(model, maps, proposals, Stopwatch())
    which = choose_scale(torch.from_numpy(proposals), maps.scales)
    assert len(which.unique()) > 1
    for index, side in enumerate(scales):
        here = which == index
        alone = compute_feature_maps(model, image, (side,))
        expected, expected_boxes = score_windows(model, alone, proposals[here.numpy()], Stopwatch())
        torch.testing.assert_close(scores[here], expected, atol=2e-2, rtol=0)  # bfloat16, and sums in another order
        torch.testing.assert_close(boxes[here], expected_boxes, atol=1, rtol=0.05)
    assert len(detect(image, model, score_threshold=0)) > 0


def test_the_same_photo_gives_the_same_boxes(tiny_detector: SPPNet) -> None:
    image = np.random.default_rng(0).integers(0, 255, (90, 120, 3), dtype=np.uint8)
    first, second = (detect(image, tiny_detector).to_dict() for _ in range(2))
    assert first == second


def test_detecting_in_maps_is_detecting(tiny_detector: SPPNet) -> None:
    image = np.random.default_rng(0).integers(0, 255, (90, 120, 3), dtype=np.uint8)
    maps = compute_feature_maps(tiny_detector, image)
    proposals = propose(image, tiny_detector.architecture.proposer)
    found = detect_in_maps(tiny_detector, maps, proposals, score_threshold=0.2, most=7)
    assert len(found) == 7
    assert found.to_dict() == detect(image, tiny_detector, score_threshold=0.2, most=7).to_dict()


def test_the_stopwatch_adds_up_every_stage(tiny_detector: SPPNet) -> None:
    maps = compute_feature_maps(tiny_detector, np.zeros((64, 64, 3), np.uint8))
    watch = Stopwatch()
    score_windows(tiny_detector, maps, np.array([[0, 0, 64, 64]], np.float32), watch)
    assert set(watch.seconds) == {"pooling", "fully connected", "nms"}
    once = watch.seconds["pooling"]
    with watch.stage("pooling"):
        pass
    assert watch.seconds["pooling"] > once > 0


def test_what_cannot_be_used_is_said(tiny_detector: SPPNet) -> None:
    image = np.zeros((64, 64, 3), np.uint8)
    classifier = SPPNet(dataclasses.replace(tiny_detector.architecture, detects=False), tiny_detector.backbone)
    with pytest.raises(UserError, match="classifies only"):
        detect(image, classifier)
    for wrong in (np.zeros((0, 4)), np.zeros(4), np.zeros((2, 5))):
        with pytest.raises(UserError, match=r"proposals must be \[R, 4\]"):
            detect(image, tiny_detector, proposals=wrong)
    with pytest.raises(UserError, match=r"nothing\.jpg: no such file"):
        detect("nothing.jpg", tiny_detector)
