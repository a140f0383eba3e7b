"""What the metrics of detections take, checked: boxes, scores and labels of an image, and its ground truth.

boxes [D, 4] half-open xyxy, scores [D], labels [D] 1..K; gt_boxes [G, 4], gt_labels [G] 1..K, difficult [G].
"""

import numpy as np
import numpy.typing as npt

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]
BoolArray = npt.NDArray[np.bool_]


def checked_detections(
    detections: tuple[npt.ArrayLike, npt.ArrayLike, npt.ArrayLike],
) -> tuple[FloatArray, FloatArray, IntArray]:
    """Boxes [D, 4], finite scores [D] and labels [D] of one image, as arrays.

    Raises:
        ValueError: lengths that do not agree, boxes of another shape, or scores that are not finite.

    Example:
        >>> checked_detections(([[0, 0, 9, 9]], [0.5], [1]))
        (array([[0., 0., 9., 9.]]), array([0.5]), array([1]))
    """
    boxes, scores, labels = detections
    boxes, scores, labels = _box_array("boxes", boxes), np.asarray(scores, np.float64), np.asarray(labels, np.int64)
    if not len(boxes) == scores.size == labels.size:
        raise ValueError(
            f"expected as many scores and labels as boxes, got {len(boxes)} boxes, {scores.size} scores and "
            f"{labels.size} labels"
        )
    if not np.isfinite(scores).all():
        raise ValueError("scores: expected finite numbers, got NaN or infinity")
    return boxes, scores.reshape(-1), labels.reshape(-1)


def checked_ground_truth(
    ground_truth: tuple[npt.ArrayLike, npt.ArrayLike, npt.ArrayLike],
) -> tuple[FloatArray, IntArray, BoolArray]:
    """gt_boxes [G, 4], gt_labels [G] and difficult [G] of one image, as arrays.

    Raises:
        ValueError: lengths that do not agree, or boxes of another shape.

    Example:
        >>> checked_ground_truth(([[0, 0, 9, 9]], [1], [False]))
        (array([[0., 0., 9., 9.]]), array([1]), array([False]))
    """
    gt_boxes, gt_labels, difficult = ground_truth
    gt_boxes, gt_labels, difficult = (
        _box_array("gt_boxes", gt_boxes),
        np.asarray(gt_labels, np.int64),
        np.asarray(difficult, bool),
    )
    if not len(gt_boxes) == gt_labels.size == difficult.size:
        raise ValueError(
            f"expected as many gt_labels and difficult marks as gt_boxes, got {len(gt_boxes)} gt_boxes, "
            f"{gt_labels.size} gt_labels and {difficult.size} difficult"
        )
    return gt_boxes, gt_labels.reshape(-1), difficult.reshape(-1)


def _box_array(field: str, boxes: npt.ArrayLike) -> FloatArray:
    """A float64 copy [R, 4]: exact for the integer boxes of data sets, and writable, as torch wants it."""
    array = np.array(boxes, np.float64)
    array = array.reshape(0, 4) if array.size == 0 else array
    if array.ndim != 2 or array.shape[1] != 4:
        raise ValueError(f"{field}: expected shape [R, 4] (x0, y0, x1, y1), got {list(array.shape)}")
    return array


def check_labels(field: str, labels: IntArray, n_classes: int) -> None:
    """See that labels are 1..n_classes; ``field`` is what the message calls them.

    Raises:
        ValueError: one that is not.
    """
    wrong = labels[(labels < 1) | (labels > n_classes)]
    if wrong.size:
        raise ValueError(f"{field}: expected 1..{n_classes}, as there are {n_classes} class names, got {wrong[0]}")
