"""A class more for a trained detector: seconds and average precision, against training all anew and against Faster R-CNN.

    uv run python -m benchmarks.add_class --data VOC2007 --cache CACHE \\
        --json benchmarks/results/add_class.json --markdown docs/add-class.md

One class is left out of the data: a detector is trained on the others from the images that do not show it. Then

    old           that detector: fully connected layers, SVMs, box regressors; what there is before the class
    add           `sppnet.detection.linear_heads.add_class` from the images of the class, and what the old SVMs cached of theirs
    add-from-all  the same from all images: those of the class, and the old ones again
    all           all classes trained together from all images
    faster-rcnn   torchvision's Faster R-CNN with the same backbone and weights, fine-tuned until it is as good as ``add``

Every part is kept in the JSON file as soon as it is done, and the page and its plot are made from all of it: kill it, and start it
again. Parts can be chosen with ``--parts``; other settings are other entries of the file.

Reading path: `settings` (what is left out of what) -> `detectors` (the first four parts) -> `faster_rcnn` (the network), `race` (its
training by the clock) -> `page` (what people read); `__main__` puts them together.
"""
