"""`sppnet demo`: scikit-image's sample photos, at their own and at odd sizes, classified, searched and drawn. Offline."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table
from skimage import data

from sppnet.classification.predict import classify_map
from sppnet.data.images import resize_image
from sppnet.detection.feature_maps import compute_feature_maps
from sppnet.detection.network_proposals import propose_boxes
from sppnet.detection.predict import score_windows
from sppnet.detection.suppression import DetectSettings, select
from sppnet.files import check_outputs, write_json
from sppnet.models.files import load
from sppnet.progress import Progress, no_progress, progress_bars
from sppnet.proposals.compute import propose
from sppnet.visualize.draw import draw_detections, save_image

THRESHOLD = 0.3  # score from which a box is drawn


def demo(output: Path = Path("sppnet-demo")) -> int:
    """Try it out: sample photos in, annotated pictures and JSON out. Works offline.

    Args:
        output: Folder for pictures and results.
    """
    with progress_bars() as progress:
        rows, written = run_demo(output, progress)
    table = Table("photo", "size", "what is in it", "where")
    for row in rows:
        table.add_row(*row)
    Console().print(table)
    first, document = written[0].name, written[-1].name
    print(f"\n{len(written)} files in {output}: look at {first} first; everything as JSON in {document}")
    return 0


def sample_photos() -> dict[str, np.ndarray]:
    """Photos that come with scikit-image, by name; some cut or resized to sizes that most networks refuse."""
    astronaut, chelsea, rocket = data.astronaut(), data.chelsea(), data.rocket()
    motorcycle = data.stereo_motorcycle()[0]
    return {
        "astronaut": astronaut,
        "chelsea": chelsea,
        "coffee": data.coffee(),
        "motorcycle": motorcycle,
        "rocket": rocket,
        "astronaut-tall": astronaut[:, 100:360].copy(),
        "chelsea-wide": chelsea[30:250],
        "chelsea-small": resize_image(chelsea, (64, 96)),
        "motorcycle-large": resize_image(motorcycle, (1000, 1482)),
    }


def run_demo(output: Path, progress: Progress = no_progress) -> tuple[list[tuple[str, str, str, str]], list[Path]]:
    """Classify and search every sample photo with the shipped model; write pictures and one JSON document.

    Args:
        output: folder, created if missing; of its files only those of an earlier demo are replaced.
        progress: called after each photo.

    Returns:
        A table row for each photo (name, size, classes, boxes), and the files written, the JSON document last.
    """
    model = load("voc")
    photos = sample_photos()
    check_outputs(*(output / name for name in ("demo.json", *(f"{name}.jpg" for name in photos))))
    rows, files, document = [], [], []
    for done, (name, photo) in enumerate(photos.items()):
        maps = compute_feature_maps(model, photo)  # once, for both questions
        proposals = propose_boxes(model, maps, model.detection.proposals, partial(propose, photo))
        whole = classify_map(model, maps.whole_map)
        found = select(*score_windows(model, maps, proposals), model.class_names, DetectSettings(THRESHOLD))
        files.append(output / f"{name}.jpg")
        save_image(draw_detections(photo, found), files[-1])
        classes = ", ".join(f"{label} {score:.2f}" for label, score in whole.present() or whole.top(1))
        boxes = ", ".join(f"{box.class_name} {box.score:.2f}" for box in found) or "-"
        height, width, _ = photo.shape
        rows.append((name, f"{width} x {height}", classes, boxes))
        answers = {"classification": whole.to_dict(), "detections": found.to_dict()}
        document.append({"photo": name, "height": height, "width": width, "picture": files[-1].name, **answers})
        progress("photos", done + 1, len(photos))
    files.append(output / "demo.json")
    write_json(files[-1], {"photos": document})
    return rows, files
