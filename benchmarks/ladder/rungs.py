"""The rungs of the ladder, in the order of the table: what each is, which steps it takes, and which rung it is compared with.

And the claims of the papers that the ladder asks again, with the papers' figures.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from benchmarks.ladder.rcnn import rcnn_linear_step
from benchmarks.ladder.settings import Ladder
from benchmarks.ladder.steps import Step
from benchmarks.ladder.training import (
    LAYERS,
    end_to_end_step,
    end_to_end_svm_step,
    finetune_step,
    layers_of,
    linear_step,
    maps_step,
    svd_step,
    untrained_step,
)
from sppnet.detection.box_regression import BoxRegressionSettings
from sppnet.detection.svm import SVMSettings
from sppnet.errors import UserError

Make = Callable[[Ladder, int], Step]  # of a seed, the step that makes the model


@dataclass(frozen=True)
class Rung:
    """One rung.

    Args:
        name: as ``--rungs`` takes it.
        title: for people.
        make: the last step of its training.
        against: the rung that its gain is told against; "" for none.
        moves: whether boxes are moved, by the box regression that the model has; else they stay as proposed.
        votes: whether boxes that were kept move by the votes of those around them.
        way: of testing: "maps"; "crops", R-CNN's; or "few": maps, on the windows that R-CNN looks at.
        seeds: how many models of different seeds answer together.
    """

    name: str
    title: str
    make: Make
    against: str = ""
    moves: bool = False
    votes: bool = False
    way: str = "maps"
    seeds: int = 1

    def told(self, ladder: Ladder) -> str:
        """The title with what the settings make of it."""
        settings = ladder.settings
        more = {"e2e-from": f" (from {layers_of(ladder, 'from')})", "e2e-svd": f" (keeping {settings.svd_energy:.0%})"}
        windows = f", {settings.rcnn_proposals or 'all'} windows an image" if self.way in ("crops", "few") else ""
        return f"{self.title}{windows}{more.get(self.name, '')}"


def _untrained_svm(family: str, name: str, hidden: tuple[int, ...] | None) -> Make:
    def make(ladder: Ladder, seed: int) -> Step:
        maps = maps_step(ladder, family, seed, flip=False)
        start = untrained_step(ladder, family, seed, hidden)
        return linear_step(ladder, start, f"{name}-seed{seed}", svm=SVMSettings(seed=seed), needs=(maps,))

    return make


def _finetuned(family: str) -> Make:
    return lambda ladder, seed: finetune_step(ladder, family, seed)


def _svm(family: str) -> Make:
    return lambda ladder, seed: linear_step(
        ladder, finetune_step(ladder, family, seed), f"{family}-svm-seed{seed}", svm=SVMSettings(seed=seed)
    )


def _ridge(family: str) -> Make:
    return lambda ladder, seed: linear_step(
        ladder, _svm(family)(ladder, seed), f"{family}-svm-ridge-seed{seed}", ridge=BoxRegressionSettings()
    )


def _end_to_end(layers: str) -> Make:
    return lambda ladder, seed: end_to_end_step(ladder, layers, seed)


def _of_family(family: str, scales: str) -> tuple[Rung, ...]:
    def against(first: str, other: str) -> str:
        return other if family == "spp1" else f"spp1-{first}"

    return (
        Rung(f"{family}-pooled-svm", f"SPP-net, {scales}: SVMs on pooled windows, nothing fine-tuned",
             _untrained_svm(family, f"{family}-pooled-svm", ()), against("pooled-svm", "")),
        Rung(f"{family}-softmax", f"SPP-net, {scales}: fully connected layers fine-tuned, softmax", _finetuned(family),
             against("softmax", "spp1-pooled-svm")),
        Rung(f"{family}-svm", f"SPP-net, {scales}: SVMs in place of softmax", _svm(family), against("svm", "spp1-softmax")),
        Rung(f"{family}-svm-ridge", f"SPP-net, {scales}: SVMs and ridge box regression", _ridge(family),
             against("svm-ridge", "spp1-svm"), moves=True),
        Rung(f"{family}-network", f"SPP-net, {scales}: softmax and the network's box regression, one loss",
             _finetuned(family), against("network", "spp1-softmax"), moves=True),
    )  # fmt: skip


RUNGS: tuple[Rung, ...] = (
    Rung("rcnn", "R-CNN: fully connected layers fine-tuned, SVMs", rcnn_linear_step, way="crops"),
    Rung("rcnn-ridge", "R-CNN: SVMs and ridge box regression", lambda ladder, seed: rcnn_linear_step(ladder, seed, ridge=True),
         "rcnn", moves=True, way="crops"),
    *_of_family("spp1", "1 scale"),
    Rung("spp1-few", "SPP-net, 1 scale: SVMs, tested on R-CNN's windows", _svm("spp1"), "rcnn", way="few"),
    Rung("spp1-random-svm", "SPP-net, 1 scale: SVMs on fully connected layers that never learned",
         _untrained_svm("spp1", "spp1-random-svm", None), "spp1-pooled-svm"),
    Rung("spp1-svm-network", "SPP-net, 1 scale: SVMs and the network's box regression", _svm("spp1"), "spp1-svm-ridge", moves=True),
    Rung("spp1-vote", "SPP-net, 1 scale: the network's box regression, and box voting", _finetuned("spp1"), "spp1-network", moves=True, votes=True),
    Rung("spp1-two", "SPP-net, 1 scale: two fine-tunings of one backbone together", _finetuned("spp1"), "spp1-network",
         moves=True, seeds=2),
    *_of_family("spp5", "several scales"),
    *(
        Rung(f"e2e-{layers}", f"End to end: {what}", _end_to_end(layers), against, moves=True)
        for (layers, what), against in zip(LAYERS.items(), ("spp1-network", "e2e-fc", "e2e-from"), strict=True)
    ),
    Rung("e2e-svm", "End to end: SVMs in place of softmax", end_to_end_svm_step, "e2e-all", moves=True),
    Rung("e2e-svd", "End to end: fully connected layers truncated", svd_step, "e2e-all", moves=True),
    Rung("e2e-vote", "End to end: and box voting", _end_to_end("all"), "e2e-all", moves=True, votes=True),
    Rung("e2e-two", "End to end: two trainings together", _end_to_end("all"), "e2e-all", moves=True, seeds=2),
)  # fmt: skip

NAMES = tuple(rung.name for rung in RUNGS)
# The rung that each is compared with; also of one that was measured, and that the package no longer trains.
AGAINST = {rung.name: rung.against for rung in RUNGS} | {"spp1-svm-ridge-pooled": "spp1-svm-ridge"}


def chosen_rungs(names: Sequence[str]) -> tuple[Rung, ...]:
    """Rungs by name, or by family, in the order of the table; all where none is named.

    Raises:
        UserError: no such rung.

    Example:
        >>> [rung.name for rung in chosen_rungs(["e2e-from", "rcnn", "e2e-fc"])]
        ['rcnn', 'rcnn-ridge', 'e2e-fc', 'e2e-from']
    """
    families = {name.partition("-")[0] for name in NAMES}
    for name in names:
        if name not in NAMES and name not in families:
            raise UserError(
                f"no rung named {name!r}: expected some of {', '.join(NAMES)}; or {', '.join(sorted(families))}"
            )
    chosen = [rung for rung in RUNGS if rung.name in names or rung.name.partition("-")[0] in names]
    return tuple(chosen) if names else RUNGS


def partners(rung: Rung, seed: int, seeds: Sequence[int]) -> tuple[int, ...]:
    """The seeds of the models that answer together: this one and those that follow it, round the list; () where they are too few.

    With as many seeds as models, there is one such set, and it goes by the first seed.

    Example:
        >>> two = next(rung for rung in RUNGS if rung.seeds == 2)
        >>> partners(two, 1, (0, 1, 2)), partners(two, 2, (0, 1, 2)), partners(two, 1, (0, 1)), partners(two, 0, (0,))
        ((1, 2), (2, 0), (), ())
    """
    index = list(seeds).index(seed)
    if rung.seeds > 1 and (len(seeds) < rung.seeds or (len(seeds) == rung.seeds and index > 0)):
        return ()
    return tuple(seeds[(index + step) % len(seeds)] for step in range(rung.seeds))


class Claim(NamedTuple):
    """One claim: ``rung`` is better than ``other``; what the paper has for it, and where."""

    text: str
    rung: str
    other: str
    paper: str
    source: str


SPP, FAST = "SPP-net, table {}", "Fast R-CNN, table {}"

CLAIMS = (
    Claim("As good as R-CNN, one scale, SVMs", "spp1-svm", "rcnn", "54.5 against 55.1", SPP.format(10)),
    Claim("The same, on R-CNN's windows alone", "spp1-few", "rcnn", "", ""),
    Claim("As good as R-CNN, several scales, box regression", "spp5-svm-ridge", "rcnn-ridge", "59.2 against 59.2", SPP.format(10)),
    Claim("Several scales, nothing fine-tuned", "spp5-pooled-svm", "spp1-pooled-svm", "43.0 -> 44.9", SPP.format(9)),
    Claim("Several scales, fine-tuned", "spp5-svm", "spp1-svm", "54.5 -> 55.2", SPP.format(9)),
    Claim("Several scales, box regression", "spp5-svm-ridge", "spp1-svm-ridge", "58.0 -> 59.2", f"{SPP.format(9)}; {FAST.format(7)}"),
    Claim("Fine-tuning, against SVMs on pooled windows", "spp1-svm", "spp1-pooled-svm", "43.0 -> 54.5", SPP.format(9)),
    Claim("Fine-tuning, against layers that did not (here: random)", "spp1-svm", "spp1-random-svm", "42.5 -> 52.3 (fc6)", SPP.format(9)),
    Claim("SVMs in place of softmax, backbone frozen", "spp1-svm", "spp1-softmax", "", ""),
    Claim("SVMs in place of softmax, end to end", "e2e-svm", "e2e-all", "57.1 -> 56.3, 59.2 -> 58.7, 66.9 -> 66.8", FAST.format(8)),
    Claim("Box regression, R-CNN", "rcnn-ridge", "rcnn", "54.2 -> 58.5", "SPP-net, table 9; R-CNN, table 2"),
    Claim("Box regression, one scale", "spp1-svm-ridge", "spp1-svm", "54.5 -> 58.0", SPP.format(9)),
    Claim("Box regression, several scales", "spp5-svm-ridge", "spp5-svm", "55.2 -> 59.2", SPP.format(9)),
    Claim("Box regression in the network's own loss", "spp1-network", "spp1-softmax", "", ""),
    Claim("Box voting, backbone frozen", "spp1-vote", "spp1-network", "", ""),
    Claim("Box voting, end to end", "e2e-vote", "e2e-all", "", ""),
    Claim("More training of the fully connected layers alone", "e2e-fc", "spp1-network", "", ""),
    Claim("The later convolutions learn too", "e2e-from", "e2e-fc", "61.4 -> 66.9", FAST.format(5)),
    Claim("All layers learn", "e2e-all", "e2e-from", "66.9 -> 67.2", FAST.format(5)),
    Claim("End to end, against SPP-net at several scales", "e2e-all", "spp5-svm-ridge", "63.1 -> 66.9", FAST.format(4)),
    Claim("Truncated layers", "e2e-svd", "e2e-all", "66.9 -> 66.6", FAST.format(4)),
    Claim("Two fine-tunings of one backbone together", "spp1-two", "spp1-network", "no gain", "SPP-net, section 4.4"),
    Claim("Two networks together", "e2e-two", "e2e-all", "59.2, 59.1 -> 60.9", SPP.format(12)),
)  # fmt: skip
