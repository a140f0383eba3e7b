"""Counting a classifier's answers: by hand, through a model, with broken files and with other classes."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from sppnet.classification.evaluate import ClassifierEvaluation, evaluate_classifier, evaluate_features
from sppnet.classification.features import pooled_features
from sppnet.classification.predict import classify
from sppnet.classification.views import Views
from sppnet.data.labelled import LabelledImages
from sppnet.errors import ImageError, SettingsError
from sppnet.models.preprocess import Preprocess
from sppnet.models.sppnet import Architecture, SPPNet, build_model

COLORS = {"red": (220, 30, 30), "green": (30, 220, 30), "blue": (30, 30, 220)}


@pytest.fixture(scope="module")
def net() -> SPPNet:
    """Knows red, green and blue by construction: the answer is the brightest channel of the brightest cell."""
    architecture = Architecture(tuple(COLORS), "", (1,), (), detects=False, multi_label=False)
    backbone = torch.nn.Sequential(torch.nn.Conv2d(3, 3, 1, bias=False), torch.nn.AvgPool2d(4))
    net = build_model(architecture, Preprocess(32, 64, mean=(0, 0, 0), std=(1, 1, 1)), backbone=backbone).eval()
    with torch.no_grad():
        backbone[0].weight.copy_(torch.eye(3)[:, :, None, None])
        net.image_classifier.weight.copy_(8 * torch.eye(3))
        net.image_classifier.bias.zero_()
    return net


def folder_of(root: Path, *files: tuple[str, str], names: tuple[str, ...] = tuple(COLORS)) -> LabelledImages:
    """Images as (class, color) pairs: a file of that color under that class, each of another size."""
    paths = []
    for index, (name, color) in enumerate(files):
        paths.append(root / f"{index}-{name}.png")
        Image.new("RGB", (40 + 5 * index, 50 + 3 * index), COLORS[color]).save(paths[-1])
    return LabelledImages(tuple(paths), np.array([names.index(name) for name, _ in files]), names)


def test_a_worked_example(net: SPPNet, tmp_path: Path) -> None:
    data = folder_of(tmp_path, ("red", "red"), ("red", "red"), ("red", "blue"), ("green", "green"))
    progress: list[tuple[str, int, int]] = []
    result = evaluate_classifier(net, data, progress=lambda *call: progress.append(call))
    assert result.top1 == 0.75
    assert result.top5 is None  # three classes
    assert result.mean_class == pytest.approx((2 / 3 + 1) / 2)
    assert result.confusion.tolist() == [[2, 0, 1], [0, 1, 0], [0, 0, 0]]
    assert result.ranks[:2].tolist() == [0, 0]
    assert result.probabilities.shape == (4, 3)
    lower, upper = result.interval
    assert lower < 0.75 < upper
    assert [(mistake.path.name, mistake.truth, mistake.answer) for mistake in result.mistakes()] == [("2-red.png", "red", "blue")]  # fmt: skip
    assert progress == [("classification", done, 4) for done in (1, 2, 3, 4)]
    assert result.seconds_per_image > 0
    assert result.loss == pytest.approx(-np.log(result.probabilities[range(4), result.labels]).mean(), abs=1e-5)


def test_as_json_and_as_a_table(net: SPPNet, tmp_path: Path) -> None:
    data = folder_of(tmp_path, ("red", "red"), ("red", "blue"), ("green", "green"))
    result = evaluate_classifier(net, data)
    document = json.loads(json.dumps(result.to_dict()))
    assert document["top1"] == 0.6667
    assert document["top1_interval"] == [round(end, 4) for end in result.interval]
    assert document["mean_class"] == 0.75
    assert document["images"] == 3
    assert document["broken"] == []
    assert document["classes"]["red"] == {"accuracy": 0.5, "images": 2, "taken_for": {"blue": 1}}
    assert document["classes"]["blue"] == {"accuracy": None, "images": 0, "taken_for": {}}
    assert result.table().splitlines() == [
        "class  images  accuracy  most often taken for",
        "red         2     0.500  blue (1)",
        "green       1     1.000  -",
        "mean        3     0.750",
    ]


def test_the_probabilities_are_those_of_the_views(net: SPPNet, tmp_path: Path) -> None:
    data = folder_of(tmp_path, ("red", "red"), ("green", "blue"))
    views = Views((32, 48), window=32, full=(32,), flip=True)
    result = evaluate_classifier(net, data, views=views)
    assert result.views == views
    for path, row in zip(data.paths, result.probabilities, strict=True):
        np.testing.assert_array_equal(row, classify(path, net, views=views).scores)
    assert evaluate_classifier(net, data, views="10-view").views.window == 32


def test_the_most_confident_mistakes_come_first_and_top_5_needs_six_classes() -> None:
    names = tuple("abcdef")
    probabilities = np.full((4, 6), 0.01, np.float32)
    probabilities[[0, 1, 2, 3], [1, 0, 2, 1]] = [0.5, 0.9, 0.8, 0.7]
    labels = np.array([0, 0, 0, 5])
    paths = tuple(Path(f"{i}.jpg") for i in range(4))
    result = ClassifierEvaluation(names, paths, labels, probabilities, Views(full=(None,)))
    assert [(mistake.path.stem, mistake.truth, mistake.answer) for mistake in result.mistakes()] == [
        ("2", "a", "c"), ("3", "f", "b"), ("0", "a", "b"),
    ]  # fmt: skip
    assert result.mistakes(1)[0].score == pytest.approx(0.8)
    assert result.mistakes(0) == []
    assert result.top1 == 0.25
    assert result.top5 == 0.75  # the last class is last of the equals
    assert math.isnan(result.seconds_per_image)
    assert result.to_dict()["seconds_per_image"] is None


def test_classes_are_matched_by_name(net: SPPNet, tmp_path: Path) -> None:
    files = (("red", "red"), ("blue", "blue"), ("green", "red"))
    reference = evaluate_classifier(net, folder_of(tmp_path, *files))
    turned = evaluate_classifier(net, folder_of(tmp_path, *files, names=("blue", "unused", "green", "red")))
    assert turned.class_names == reference.class_names == tuple(COLORS)
    assert turned.labels.tolist() == reference.labels.tolist() == [0, 2, 1]
    assert turned.confusion.tolist() == reference.confusion.tolist()


def test_broken_images_are_named_and_the_rest_is_done(net: SPPNet, tmp_path: Path) -> None:
    data = folder_of(tmp_path, ("red", "red"), ("green", "green"), ("blue", "blue"), ("blue", "red"))
    data.paths[1].write_bytes(b"not an image")
    data.paths[3].unlink()
    result = evaluate_classifier(net, data)
    assert [path.name for path, _ in result.broken] == ["1-green.png", "3-blue.png"]
    assert "no such file" in result.broken[1][1]
    assert result.labels.tolist() == [0, 2]
    assert result.top1 == 1
    assert [entry["path"] for entry in result.to_dict()["broken"]] == [str(data.paths[1]), str(data.paths[3])]


def test_from_pooled_features_it_is_the_same(net: SPPNet, tmp_path: Path) -> None:
    data = folder_of(tmp_path, ("red", "red"), ("green", "blue"), ("blue", "blue"))
    features = pooled_features(net, data.paths, tmp_path / "cache")
    result, expected = evaluate_features(net, data, features), evaluate_classifier(net, data)
    np.testing.assert_allclose(result.probabilities, expected.probabilities, atol=0.01)
    assert (result.paths, result.labels.tolist(), result.top1) == (expected.paths, [0, 1, 2], expected.top1)


def test_what_cannot_be_used_is_said(net: SPPNet, tmp_path: Path) -> None:
    known = folder_of(tmp_path, ("red", "red"))
    pink = LabelledImages(known.paths * 2, np.array([0, 1]), ("red", "pink"))
    with pytest.raises(
        SettingsError, match=r"does not know 1 of the 2 classes of the data, such as 'pink'; it knows 3"
    ):
        evaluate_classifier(net, pink)
    with pytest.raises(SettingsError, match="holds no images"):
        evaluate_classifier(net, known.subset([]))
    known.paths[0].write_bytes(b"")
    with pytest.raises(ImageError, match=r"none of the 1 images can be read; the first: .*empty"):
        evaluate_classifier(net, known)
