"""Results: what is kept, how it is cut down, and what goes into JSON."""

import json
import pickle

import numpy as np
import pytest
from PIL import Image

from sppnet import results
from sppnet.data.formats.voc import read as read_voc
from sppnet.errors import UserError
from sppnet.results import Classification, Detections

FOUND = Detections(
    boxes=np.array([[10, 20, 110, 220], [0, 0, 5.125, 5], [3, 3, 9, 9]], np.float32),
    scores=np.array([0.9, 0.5, 0.1], np.float32),
    labels=np.array([15, 8, 8]),
    class_names=("person", "cat", "cat"),
)


def test_iterating_gives_one_detection_after_the_other():
    first, *others = FOUND
    assert first.class_name == "person"
    assert first.label == 15
    assert first.score == pytest.approx(0.9)
    assert first.box.tolist() == [10, 20, 110, 220]
    assert len(others) == len(FOUND) - 1 == 2


def test_above_keeps_scores_equal_to_the_threshold_and_the_order():
    assert FOUND.above(0.5).class_names == ("person", "cat")
    assert FOUND.above(0.9).class_names == ("person",)  # .9 as a float32 is not .9: the threshold is rounded likewise
    assert len(FOUND.above(1.1)) == 0
    assert FOUND.above(1.1).boxes.shape == (0, 4)
    assert len(FOUND) == 3


def test_select_takes_masks_and_positions():
    assert FOUND.select([2, 0]).scores.tolist() == pytest.approx([0.1, 0.9])
    assert FOUND.select([False, True, False]).class_names == ("cat",)
    assert len(FOUND.select([])) == 0


def test_detections_convert_their_fields():
    found = Detections([[0, 0, 1, 1]], [1], [1.0], ["cat"])
    assert (found.boxes.dtype, found.scores.dtype, found.labels.dtype) == (np.float32, np.float32, np.int64)
    assert found.class_names == ("cat",)


def test_results_do_not_change_with_the_arrays_they_were_made_from():
    boxes = np.zeros((1, 4), np.float32)
    found = Detections(boxes, np.ones(1, np.float32), np.ones(1, np.int64), ("cat",))
    boxes += 7
    assert found.boxes.tolist() == [[0, 0, 0, 0]]
    with pytest.raises(ValueError, match="read-only"):
        found.boxes[0] = 1


def test_no_detections_at_all():
    for found in (Detections.empty(), Detections([], [], [], [])):
        assert len(found) == 0
        assert list(found) == []
        assert found.boxes.shape == (0, 4)
        assert found.to_dict() == {
            "boxes": [],
            "scores": [],
            "score_kind": "probability",
            "labels": [],
            "class_names": [],
        }
        assert len(found.above(0.5)) == 0


def test_detections_go_through_json_and_pickle():
    document = json.loads(json.dumps(FOUND.to_dict()))
    assert document["boxes"][1] == [0.0, 0.0, 5.12, 5.0]
    assert document["scores"] == [0.9, 0.5, 0.1]
    assert document["labels"] == [15, 8, 8]
    assert document["class_names"] == ["person", "cat", "cat"]
    assert pickle.loads(pickle.dumps(FOUND)).to_dict() == FOUND.to_dict()


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (([[1, 2, 3]], [1], [1], ["a"]), r"boxes: expected shape \[R, 4\] .*, got \[1, 3\]"),
        (([1, 2, 3, 4], [1], [1], ["a"]), r"boxes: expected shape \[R, 4\] .*, got \[4\]"),
        (([[1, 2, 3, 4]], [1, 2], [1], ["a"]), r"scores: expected one for each of the 1 boxes, got shape \[2\]"),
        (([[1, 2, 3, 4]], [1], [], ["a"]), r"labels: expected one for each of the 1 boxes, got shape \[0\]"),
        (([[1, 2, 3, 4]], [1], [1], []), r"class_names: expected one for each of the 1 boxes, got shape \[0\]"),
        (([[1, 2, 3, 4]], [1], [0], ["a"]), r"labels: expected 1\.\.K \(0 is the background\), got 0"),
    ],
)
def test_detections_that_do_not_agree_are_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        Detections(*fields)


def test_to_supervision_counts_classes_from_zero(monkeypatch):
    class FakeSupervision:
        Detections = staticmethod(lambda **fields: fields)

    monkeypatch.setattr(results.importlib, "import_module", lambda name: FakeSupervision)
    fields = FOUND.to_supervision()
    assert fields["class_id"].tolist() == [14, 7, 7]
    assert fields["data"]["class_name"].tolist() == ["person", "cat", "cat"]
    assert fields["xyxy"].flags.writeable
    assert fields["confidence"].flags.writeable


def test_to_supervision_real_package():
    pytest.importorskip("supervision")
    assert len(FOUND.to_supervision()) == 3


def test_to_supervision_without_the_package_says_what_to_install(monkeypatch):
    def absent(name):
        raise ImportError(name)

    monkeypatch.setattr(results.importlib, "import_module", absent)
    with pytest.raises(UserError, match="pip install supervision"):
        FOUND.to_supervision()


ANSWER = Classification(np.array([0.1, 0.7, 0.6, 0.7], np.float32), ("bird", "cat", "sofa", "dog"), multi_label=True)


def test_classification_names_the_best_the_first_of_equals():
    assert ANSWER.label == "cat"
    assert ANSWER.top(3) == [("cat", 0.7), ("dog", 0.7), ("sofa", 0.6)]
    assert len(ANSWER.top(99)) == 4
    assert ANSWER.top(0) == []


def test_present_keeps_scores_equal_to_the_threshold():
    assert ANSWER.present(0.7) == [("cat", 0.7), ("dog", 0.7)]
    assert ANSWER.present(0.71) == []


def test_classification_goes_through_json():
    document = json.loads(json.dumps(ANSWER.to_dict()))
    assert document["label"] == "cat"
    assert document["multi_label"] is True
    assert next(iter(document["scores"].items())) == ("cat", 0.7)
    assert document["present"] == ["cat", "dog", "sofa"]
    assert "present" not in Classification([1.0], ("cat",)).to_dict()


@pytest.mark.parametrize(
    ("scores", "names", "message"),
    [
        ([], [], r"scores: expected shape \[K\] with at least one class, got \[0\]"),
        ([[1.0]], ["a"], r"got \[1, 1\]"),
        ([1.0, 0.0], ["a"], "class_names: expected one for each of the 2 scores, got 1"),
    ],
)
def test_classifications_that_do_not_agree_are_refused(scores, names, message):
    with pytest.raises(ValueError, match=message):
        Classification(scores, names)


def test_top_of_a_negative_number_is_refused():
    with pytest.raises(ValueError, match="k: expected at least 0, got -1"):
        ANSWER.top(-1)


# --- other tools' formats -------------------------------------------------------------------------------------------

SIZE = (100, 200)  # height, width of the image that these are of; the last box reaches over its edges
EXPORTED = Detections(
    [[10, 20, 60, 90], [0, 0, 200, 100], [-5, 50, 300, 101]], [0.9, 0.5, 1 / 3], [1, 2, 2], ("a cat", "a<b", "a<b")
)


def test_voc_files_come_back_as_they_were(tmp_path):
    """Read by the reader of data sets, which takes the last pixel of a box as part of it."""
    (tmp_path / "Annotations").mkdir()
    (tmp_path / "JPEGImages").mkdir()
    (tmp_path / "ImageSets/Main").mkdir(parents=True)
    (tmp_path / "ImageSets/Main/val.txt").write_text("a\n")
    Image.new("RGB", SIZE[::-1]).save(tmp_path / "JPEGImages/a.jpg")
    (tmp_path / "Annotations/a.xml").write_text(EXPORTED.to_voc("a.jpg", SIZE))
    data = read_voc(tmp_path, "val")
    assert data.images[0].gt_boxes.tolist() == [[10, 20, 60, 90], [0, 0, 200, 100], [0, 50, 200, 100]]
    names = [data.class_names[label - 1] for label in data.images[0].gt_labels]
    assert names == list(EXPORTED.class_names)


def test_a_voc_box_holds_a_pixel_at_least():
    text = Detections([[199.9, 99.8, 200, 100]], [1], [1], ["cat"]).to_voc("a.jpg", SIZE)
    for side, value in {"xmin": 200, "ymin": 100, "xmax": 200, "ymax": 100}.items():
        assert f"<{side}>{value}</{side}>" in text


def test_coco_results_score_as_the_detections_do():
    entries = EXPORTED.to_coco(7, {"a cat": 17, "a<b": 3})
    assert [entry["category_id"] for entry in entries] == [17, 3, 3]
    assert [entry["category_id"] for entry in EXPORTED.to_coco(7)] == [1, 2, 2]
    assert entries[0] == {"image_id": 7, "category_id": 17, "bbox": [10, 20, 50, 70], "score": 0.9}
    json.dumps(entries)
    with pytest.raises(ValueError, match=r"category_ids: expected an id for each class, got none for \['a<b'\]"):
        EXPORTED.to_coco(7, {"a cat": 17})


def test_yolo_lines_give_the_boxes_back():
    rows = np.array([line.split() for line in EXPORTED.to_yolo(SIZE).splitlines()], float)
    assert rows[:, 0].tolist() == [0, 1, 1]
    centers, sides = rows[:, 1:3] * SIZE[::-1], rows[:, 3:5] * SIZE[::-1]
    boxes = np.hstack([centers - sides / 2, centers + sides / 2])
    assert boxes == pytest.approx(np.clip(EXPORTED.boxes, 0, [200, 100, 200, 100]), abs=1e-3)
    assert rows[:, 5] == pytest.approx([0.9, 0.5, 0.3333])
    assert Detections.empty().to_yolo(SIZE) == ""


def test_label_studio_tasks_are_in_per_cent_of_the_image():
    task = json.loads(json.dumps(EXPORTED.to_label_studio(SIZE, "/data/a.jpg")))
    assert task["data"] == {"image": "/data/a.jpg"}
    first, _, last = task["predictions"][0]["result"]
    assert first["value"] == {
        "x": 5, "y": 20, "width": 25, "height": 70, "rotation": 0, "rectanglelabels": ["a cat"],
    }  # fmt: skip
    assert (first["original_width"], first["original_height"], first["score"]) == (200, 100, 0.9)
    assert [last["value"][side] for side in ("x", "y", "width", "height")] == [0, 50, 100, 50]


def test_a_drawing_of_whatever_reads_as_an_image(tmp_path):
    photo = np.full((700, 900, 3), 128, np.uint8)
    Image.fromarray(photo).save(tmp_path / "a.png")
    drawn = FOUND.draw(photo)
    assert drawn.size == (900, 700)
    assert FOUND.draw(tmp_path / "a.png").tobytes() == FOUND.draw(Image.fromarray(photo)).tobytes() == drawn.tobytes()
    assert drawn.tobytes() != photo.tobytes()
    assert ANSWER.draw(tmp_path / "a.png", title="a.png").width == 900


def test_notebooks_show_a_table():
    assert "<td>a&lt;b</td><td>0.50</td><td>0 0 200 100</td>" in EXPORTED._repr_html_()
    assert EXPORTED._repr_html_().count("<tr>") == 4
    assert "<td>cat</td><td>0.70</td>" in ANSWER._repr_html_()
