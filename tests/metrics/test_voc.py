"""VOC average precision against cases worked by hand."""

import json
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sppnet.metrics import checked_image
from sppnet.metrics.voc import (
    FALSE_POSITIVE,
    IGNORED,
    TRUE_POSITIVE,
    average_precision,
    evaluate_voc,
    evaluate_voc_images,
    match_image,
)

NOTHING = ([], [], [])
A, B, FAR = [0, 0, 10, 10], [50, 50, 60, 60], [90, 90, 99, 99]  # three boxes that do not touch


def truth(*boxes, labels=None, difficult=None):
    return (list(boxes), labels or [1] * len(boxes), difficult or [False] * len(boxes))


def found(*boxes, scores=None, labels=None):
    """Detections by falling score, unless told otherwise."""
    return (list(boxes), scores or list(np.linspace(0.9, 0.1, len(boxes))), labels or [1] * len(boxes))


def judged(detections, ground_truth, iou=0.5):
    return match_image(checked_image(detections, ground_truth), iou)


# --- which detection is right --------------------------------------------------------------------------------------


def test_of_two_detections_of_one_object_the_surer_is_right():
    # IoU with A: 1 and 9 * 10 / 100 = .9; the looser box is surer, so it takes the object and the exact one is too late
    looser = [0, 0, 10, 9]
    assert judged(found(A, looser, scores=[0.4, 0.6]), truth(A)).tolist() == [FALSE_POSITIVE, TRUE_POSITIVE]


def test_a_taken_object_is_not_exchanged_for_the_next_best():
    # Objects: [0,0,10,10] and [0,3,10,13]. The second detection overlaps the first object by 10*9/(100+100-90) = .818
    # and the other by 10*8/(120) = .667. Both are above .5, but the devkit looks at the best one only: it is taken.
    objects = truth([0, 0, 10, 10], [0, 3, 10, 13])
    assert judged(found([0, 0, 10, 10], [0, 1, 10, 11]), objects).tolist() == [TRUE_POSITIVE, FALSE_POSITIVE]


def test_detections_on_a_difficult_object_are_left_out_however_many():
    outcomes = judged(found(A, A, B, FAR), truth(A, B, difficult=[True, False]))
    assert outcomes.tolist() == [IGNORED, IGNORED, TRUE_POSITIVE, FALSE_POSITIVE]


def test_a_difficult_object_that_is_not_reached_excuses_nothing():
    # IoU of [0,0,10,4] with A is .4, below .5: a false positive, difficult or not
    assert judged(found([0, 0, 10, 4]), truth(A, difficult=[True])).tolist() == [FALSE_POSITIVE]


def test_an_overlap_of_exactly_the_threshold_is_enough():
    half = [0, 0, 10, 5]
    assert judged(found(half), truth(A), iou=0.5).tolist() == [TRUE_POSITIVE]
    assert judged(found(half), truth(A), iou=0.51).tolist() == [FALSE_POSITIVE]


def test_half_open_boxes_give_the_overlap_of_the_devkits_inclusive_pixels():
    # Devkit: pixels 1..10 and 6..15 (inclusive) share 5 of 15 columns: IoU 1/3 by its "+ 1" widths.
    # Here: x0 = xmin - 1, x1 = xmax gives 0..10 and 5..15: 5 / 15.
    outcomes = [judged(found([5, 0, 15, 10]), truth(A), iou=iou).tolist() for iou in (1 / 3 - 1e-9, 1 / 3 + 1e-9)]
    assert outcomes == [[TRUE_POSITIVE], [FALSE_POSITIVE]]


def test_objects_of_another_class_are_not_looked_at():
    # The cat's box is the better overlap, but the detection says dog (2)
    objects = truth(A, [0, 0, 10, 8], labels=[1, 2])
    assert judged(found(A, A, labels=[2, 3]), objects).tolist() == [TRUE_POSITIVE, FALSE_POSITIVE]


def test_of_equal_scores_the_first_given_takes_the_object():
    outcomes = judged(found([0, 0, 10, 9], A, scores=[0.5, 0.5]), truth(A))
    assert outcomes.tolist() == [TRUE_POSITIVE, FALSE_POSITIVE]


def test_no_detections_or_no_objects():
    assert judged(NOTHING, truth(A)).tolist() == []
    assert judged(found(A, B), NOTHING).tolist() == [FALSE_POSITIVE, FALSE_POSITIVE]


def test_boxes_without_area_are_wrong_not_fatal():
    assert judged(found([5, 5, 5, 5]), truth([5, 5, 5, 5])).tolist() == [FALSE_POSITIVE]


# --- one number for a curve ----------------------------------------------------------------------------------------


def test_staircase_by_both_rules():
    # Four objects; detections by falling score: right, wrong, right, wrong, wrong, right; the fourth is never found.
    #   recall     1/4   1/4   2/4   2/4   2/4   3/4
    #   precision  1/1   1/2   2/3   2/4   2/5   3/6
    #   p(t), the largest from there on: t <= 1/4: 1; t <= 2/4: 2/3; t <= 3/4: 1/2; beyond: 0
    recall = np.array([1, 1, 2, 2, 2, 3]) / 4
    precision = [1, 1 / 2, 2 / 3, 2 / 4, 2 / 5, 3 / 6]
    # 0, .1, .2 -> 1;  .3, .4, .5 -> 2/3;  .6, .7 -> 1/2;  .8, .9, 1 -> 0:  (3 + 2 + 1) / 11
    assert average_precision(recall, precision, "voc07") == pytest.approx(6 / 11)
    # a quarter of the axis each: (1 + 2/3 + 1/2 + 0) / 4
    assert average_precision(recall, precision, "area") == pytest.approx(13 / 24)


def test_precision_that_rises_again_fills_the_dip_before_it():
    # wrong, right, right of two objects: precision 0, 1/2, 2/3; p(t) = 2/3 everywhere
    assert average_precision([0, 0.5, 1], [0, 1 / 2, 2 / 3], "voc07") == pytest.approx(2 / 3)
    assert average_precision([0, 0.5, 1], [0, 1 / 2, 2 / 3], "area") == pytest.approx(2 / 3)


@pytest.mark.parametrize("tenths", range(1, 11))
def test_a_recall_of_exactly_some_tenths_reaches_its_point(tenths):
    # .1 + .1 + .1 > 3 / 10 in floating point, and the point would be lost
    assert average_precision([tenths / 10], [1.0], "voc07") == pytest.approx((tenths + 1) / 11)
    assert average_precision([7 * tenths / 70], [1.0], "voc07") == pytest.approx((tenths + 1) / 11)


def test_perfect_and_empty_curves():
    for rule in ("voc07", "area"):
        assert average_precision([0.5, 1.0], [1.0, 1.0], rule) == pytest.approx(1)
        assert average_precision([], [], rule) == 0
        assert average_precision([0.0, 0.0], [0.0, 0.0], rule) == 0


@settings(max_examples=100, deadline=None)
@given(st.lists(st.booleans(), min_size=1, max_size=40), st.integers(0, 10))
def test_both_rules_follow_the_definition(right, missed):
    n_objects = sum(right) + missed
    if n_objects == 0:
        return
    recall = np.cumsum(right) / n_objects
    precision = np.cumsum(right) / np.arange(1, len(right) + 1)

    def p(t):
        return max((q for r, q in zip(recall, precision, strict=True) if r >= t), default=0.0)

    assert average_precision(recall, precision, "voc07") == pytest.approx(sum(p(k / 10) for k in range(11)) / 11)
    # p is a step function with its steps at k / n_objects
    area = sum(p(k / n_objects) for k in range(1, n_objects + 1)) / n_objects
    assert average_precision(recall, precision, "area") == pytest.approx(area)


# --- a whole evaluation --------------------------------------------------------------------------------------------


def test_two_images_two_classes_worked_by_hand():
    # cat (1): objects A in image 0, B in image 1, and a difficult one at A in image 1.
    #   image 0: A .9 right;  A again .8 wrong.     image 1: A .7 left out;  B .6 right.
    #   by score: right (.9), wrong (.8), right (.6) -> precision 1, 1/2, 2/3; recall 1/2, 1/2, 1
    #   p(t) = 1 for t <= .5, 2/3 above: 11-point (6 + 5 * 2/3) / 11 = 28/33; area (1 + 2/3) / 2 = 5/6
    # dog (2): one object, FAR in image 0; a detection far off it in image 1 (.5): precision 0. AP 0.
    detections = [
        found(A, A, scores=[0.9, 0.8]),
        found(A, B, FAR, scores=[0.7, 0.6, 0.5], labels=[1, 1, 2]),
    ]
    ground_truth = [truth(A, FAR, labels=[1, 2]), truth(A, B, difficult=[True, False])]
    result = evaluate_voc(detections, ground_truth, class_names=("cat", "dog"))
    cat, dog = result.classes
    assert (cat.name, cat.n_objects, cat.n_detections) == ("cat", 2, 4)
    assert cat.scores.tolist() == [0.9, 0.8, 0.6]
    assert cat.recall.tolist() == [0.5, 0.5, 1.0]
    assert cat.precision.tolist() == pytest.approx([1, 1 / 2, 2 / 3])
    assert cat.ap07 == pytest.approx(28 / 33)
    assert cat.ap_area == pytest.approx(5 / 6)
    assert (dog.n_objects, dog.n_detections, dog.ap07, dog.ap_area) == (1, 1, 0.0, 0.0)
    assert result.map07 == pytest.approx(14 / 33)
    assert result.map_area == pytest.approx(5 / 12)


def test_equal_scores_count_in_the_order_of_images_then_of_input():
    # One object in each image; all scores .5. Order: image 0 wrong, image 0 right, image 1 right:
    # precision 0, 1/2, 2/3 at recall 0, 1/2, 1, so p = 2/3 everywhere.
    detections = [found(FAR, A, scores=[0.5, 0.5]), found(A, scores=[0.5])]
    result = evaluate_voc(detections, [truth(A), truth(A)], class_names=("cat",))
    assert result.classes[0].precision.tolist() == pytest.approx([0, 1 / 2, 2 / 3])
    assert result.map07 == pytest.approx(2 / 3)


def test_a_class_without_objects_is_left_out_of_the_mean():
    # dog has a detection but no object; bird only a difficult object: both cannot be measured
    ground_truth = [truth(A, B, labels=[1, 3], difficult=[False, True])]
    result = evaluate_voc([found(A, FAR, labels=[1, 2])], ground_truth, class_names=("cat", "dog", "bird"))
    cat, dog, bird = result.classes
    assert cat.ap07 == 1
    assert math.isnan(dog.ap07)
    assert math.isnan(bird.ap_area)
    assert result.map07 == 1
    assert result.map_area == 1
    assert result.to_dict()["classes"]["dog"] == {"voc07": None, "area": None, "objects": 0}


def test_a_class_without_detections_counts_as_zero():
    result = evaluate_voc([found(A)], [truth(A, B, labels=[1, 2])], class_names=("cat", "dog"))
    assert result.classes[1].ap07 == 0
    assert result.map07 == 0.5


def test_nothing_at_all():
    for images in ([], [NOTHING], [NOTHING, NOTHING]):
        result = evaluate_voc(images, images, class_names=("cat",))
        assert math.isnan(result.map07)
        assert json.loads(json.dumps(result.to_dict(), allow_nan=False))["map"] == {"voc07": None, "area": None}
        assert result.table().splitlines()[-1].split() == ["mean", "0", "0", "-", "-"]


def test_json_and_table():
    result = evaluate_voc([found(A)], [truth(A, B, labels=[1, 2])], class_names=("cat", "diningtable"))
    assert result.to_dict() == {
        "map": {"voc07": 0.5, "area": 0.5},
        "iou": 0.5,
        "classes": {
            "cat": {"voc07": 1.0, "area": 1.0, "objects": 1},
            "diningtable": {"voc07": 0.0, "area": 0.0, "objects": 1},
        },
    }
    lines = result.table().splitlines()
    assert len(lines) == 4
    assert len({len(line) for line in lines}) == 1
    assert lines[1].split() == ["cat", "1", "1", "1.000", "1.000"]


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 2**32 - 1))
def test_the_devkit_loop_gives_the_same(seed):
    """VOCevaldet.m, line by line, on crowded random images."""
    random = np.random.default_rng(seed)
    detections, ground_truth = [], []
    for _ in range(4):
        corners = random.integers(0, 6, (8, 2))
        boxes = np.hstack([corners, corners + random.integers(3, 8, (8, 2))])
        n_gt = int(random.integers(0, 5))
        detections.append((boxes[n_gt:], random.integers(0, 3, 8 - n_gt) / 3, random.integers(1, 3, 8 - n_gt)))
        ground_truth.append((boxes[:n_gt], random.integers(1, 3, n_gt), random.random(n_gt) < 0.3))
    result = evaluate_voc(detections, ground_truth, class_names=("cat", "dog"))
    for label, measured in enumerate(result.classes, start=1):
        precision, recall = _devkit_curve(detections, ground_truth, label)
        assert measured.precision.tolist() == precision
        if measured.n_objects:
            assert measured.recall.tolist() == recall


def _devkit_curve(detections, ground_truth, label):
    entries = []
    for image, (boxes, scores, labels) in enumerate(detections):
        entries += [(-s, image, tuple(b)) for b, s, k in zip(boxes, scores, labels, strict=True) if k == label]
    entries.sort(key=lambda entry: entry[0])  # a stable sort
    n_objects = sum(
        k == label and not d for _, labels, marks in ground_truth for k, d in zip(labels, marks, strict=True)
    )
    taken, outcomes = set(), []
    for _, image, (x0, y0, x1, y1) in entries:
        best, best_iou = None, -1.0
        for j, (box, k) in enumerate(zip(ground_truth[image][0], ground_truth[image][1], strict=True)):
            width = min(x1, box[2]) - max(x0, box[0])
            height = min(y1, box[3]) - max(y0, box[1])
            if k == label and width > 0 and height > 0:
                union = (x1 - x0) * (y1 - y0) + (box[2] - box[0]) * (box[3] - box[1]) - width * height
                if width * height / union > best_iou:
                    best, best_iou = j, width * height / union
        if best_iou < 0.5:
            outcomes.append(0)
        elif not ground_truth[image][2][best]:
            outcomes.append(0 if (image, best) in taken else 1)
            taken.add((image, best))
    right = np.cumsum(outcomes) if outcomes else np.empty(0)
    return (right / np.arange(1, len(right) + 1)).tolist(), (right / max(n_objects, 1)).tolist()


# --- mistakes ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("detections", "ground_truth", "message"),
    [
        (([A], [0.5, 0.4], [1]), NOTHING, "got 1 boxes, 2 scores and 1 labels"),
        (([[1, 2, 3]], [0.5], [1]), NOTHING, r"boxes: expected shape \[R, 4\]"),
        (([A], [math.nan], [1]), NOTHING, "scores: expected finite numbers"),
        (NOTHING, ([A], [1], []), "got 1 gt_boxes, 1 gt_labels and 0 difficult"),
        (([A], [0.5], [3]), NOTHING, r"labels: expected 1\.\.2, as there are 2 class names, got 3"),
        (NOTHING, ([A], [0], [False]), r"gt_labels: expected 1\.\.2, .* got 0"),
    ],
)
def test_arrays_that_do_not_agree_are_refused(detections, ground_truth, message):
    with pytest.raises(ValueError, match=message):
        evaluate_voc([detections], [ground_truth], class_names=("cat", "dog"))


def test_other_mistakes_are_refused():
    with pytest.raises(ValueError, match="of the same images, got 1 and 0"):
        evaluate_voc([NOTHING], [], class_names=("cat",))
    with pytest.raises(ValueError, match="iou: expected above 0 and at most 1, got 50"):
        judged(NOTHING, NOTHING, iou=50)
    with pytest.raises(ValueError, match='rule: expected "voc07" or "area", got \'coco\''):
        average_precision([0.5], [1.0], "coco")
    with pytest.raises(ValueError, match="never fall"):
        average_precision([0.5, 0.4], [1.0, 1.0], "area")
    with pytest.raises(ValueError, match=r"got \[2\] and \[1\]"):
        average_precision([0.5, 0.6], [1.0], "area")


# Whole images


def test_images_are_ranked_class_by_class() -> None:
    """Four images, "cat": right, left out (only a difficult cat), wrong, right: precisions 1, 1/2, 2/3 at recalls .5, .5, 1."""
    scores = [[0.9, 0.0], [0.8, 0.0], [0.7, 0.0], [0.6, 0.0]]
    truth = [([1], [False]), ([1], [True]), ([], []), ([1, 1], [True, False])]
    result = evaluate_voc_images(scores, truth, ["cat", "dog"])
    cat, dog = result.classes
    assert cat.n_objects == 2
    assert cat.ap_area == pytest.approx(0.5 * 1 + 0.5 * 2 / 3)
    assert cat.ap07 == pytest.approx((6 * 1 + 5 * 2 / 3) / 11)
    assert np.isnan(dog.ap07)
    assert result.map_area == cat.ap_area


def test_images_and_classes_must_agree() -> None:
    with pytest.raises(ValueError, match="as there are 1 images and 2 class names"):
        evaluate_voc_images([[0.5]], [([1], [False])], ["cat", "dog"])
    with pytest.raises(ValueError, match=r"scores: expected \[2, 1\], as there are 2 images .*got \[1, 2\]"):
        evaluate_voc_images([[0.5, 0.6]], [([1], [False]), ([1], [False])], ["cat"])
    with pytest.raises(ValueError, match="scores: expected finite numbers"):
        evaluate_voc_images([[np.nan]], [([1], [False])], ["cat"])
    with pytest.raises(ValueError, match=r"gt_labels: expected 1\.\.2, .*got 0"):  # it would count for the last class
        evaluate_voc_images([[0.5, 0.6]], [([0], [False])], ["cat", "dog"])
