"""The demo: scikit-image's sample photos, at their own and at odd sizes, classified, searched and drawn. Offline."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np

from sppnet.classification.predict import classify_map
from sppnet.data.images import resize_image
from sppnet.detection.feature_maps import compute_feature_maps
from sppnet.detection.predict import detect_in_maps
from sppnet.models.files import load
from sppnet.proposals.compute import propose
from sppnet.visualize import draw_detections, save_image
from sppnet.whole_file import whole_file

THRESHOLD = 0.3  # score from which a box is drawn


def sample_photos() -> dict[str, np.ndarray]:
    """Photos that come with scikit-image, by name; some cut or resized to sizes that most networks refuse."""
    from skimage import data

    astronaut, chelsea, rocket = data.astronaut(), data.chelsea(), data.rocket()
    motorcycle = data.stereo_motorcycle()[0]
    return {
        "astronaut": astronaut,
        "chelsea": chelsea,
        "coffee": data.coffee(),
        "motorcycle": motorcycle,
        "rocket": rocket,
        "astronaut-tall": np.ascontiguousarray(astronaut[:, 100:360]),
        "chelsea-wide": np.ascontiguousarray(chelsea[30:250]),
        "chelsea-small": resize_image(chelsea, (64, 96)),
        "motorcycle-large": resize_image(motorcycle, (1000, 1482)),
    }


def run_demo(
    output: Path, report: Callable[[str, int, int], None]
) -> tuple[list[tuple[str, str, str, str]], list[Path]]:
    """Classify and search every sample photo with the shipped model; write pictures and one JSON document.

    Args:
        output: folder, created if missing.
        report: told of the progress: stage, done, total.

    Returns:
        A table row for each photo (name, size, classes, boxes), and the files written, the JSON document last.
    """
    model = load("voc")
    photos = sample_photos()
    rows, files, document = [], [], []
    for done, (name, photo) in enumerate(photos.items()):
        maps = compute_feature_maps(model, photo)  # once, for both questions
        proposals = propose(photo, model.architecture.proposer)
        whole = classify_map(model, maps.whole_map)
        found = detect_in_maps(model, maps, proposals, score_threshold=THRESHOLD)
        files.append(output / f"{name}.jpg")
        save_image(draw_detections(photo, found), files[-1])
        size = f"{photo.shape[1]} x {photo.shape[0]}"
        classes = ", ".join(f"{label} {score:.2f}" for label, score in whole.present() or whole.top(1))
        boxes = ", ".join(f"{box.name} {box.score:.2f}" for box in found) or "-"
        rows.append((name, size, classes, boxes))
        document.append(
            {
                "photo": name,
                "height": photo.shape[0],
                "width": photo.shape[1],
                "picture": files[-1].name,
                "classification": whole.to_dict(),
                "detections": found.to_dict(),
            }
        )
        report("photos", done + 1, len(photos))
    files.append(output / "demo.json")
    with whole_file(files[-1]) as unfinished:
        unfinished.write_text(json.dumps(document, indent=1), encoding="utf-8")
    return rows, files
