"""The ladder from R-CNN through SPP-net to end-to-end training: every rung trained and tested on one data set, and a table.

    uv run python -m benchmarks.ladder --data VOC2007 --work WORK --output benchmarks/results/ladder --seeds 0 1 2

Reading path: `rungs` (what there is) -> `steps` (how one builds on another, resumed and timed) -> `spp`, `end_to_end`, `rcnn` (the
steps themselves) -> `testing` (figures of one rung and seed) -> `table`, `claims`, `plot`, `page` (what people read).
"""
