"""The ladder from R-CNN through SPP-net to end-to-end training: every rung trained and tested on one data set, and a table.

    uv run python -m benchmarks.ladder --data VOC2007 --cache CACHE --output benchmarks/results/ladder --seeds 0 1 2

Reading path: `settings` -> `steps` (how one builds on another, resumed and timed) -> `training`, `rcnn` (the steps themselves) ->
`rungs` (what there is, and the papers' claims) -> `testing` (figures of one rung and seed) -> `table` (what people read).
"""
