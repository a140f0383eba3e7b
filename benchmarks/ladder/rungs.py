"""The rungs of the ladder, in the order of the table: what each is, which steps it takes, and which rung it is compared with."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from benchmarks.ladder.end_to_end import LAYERS, end_to_end_step, end_to_end_svm_step, learn_of, svd_step
from benchmarks.ladder.rcnn import rcnn_ridge_step, rcnn_svm_step
from benchmarks.ladder.settings import Ladder
from benchmarks.ladder.spp import finetune_step, maps_step, ridge_step, svm_step, untrained_step
from benchmarks.ladder.steps import Step
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
        title = self.title
        if self.way in ("crops", "few"):
            title += f", {settings.rcnn_proposals or 'all'} windows an image"
        if self.name == "e2e-from":
            title += f" ({learn_of(ladder, 'from')})"
        if self.name == "e2e-svd":
            title += f" (keeping {settings.svd_energy:.0%})"
        return title


def _pooled_svm(family: str) -> Make:
    def make(ladder: Ladder, seed: int) -> Step:
        maps = maps_step(ladder, family, seed, mirrored=False)
        return svm_step(
            ladder, untrained_step(ladder, family, seed, ()), f"{family}-pooled-svm-seed{seed}", seed, (maps,)
        )

    return make


def _random_svm(ladder: Ladder, seed: int) -> Step:
    maps = maps_step(ladder, "spp1", seed, mirrored=False)
    return svm_step(ladder, untrained_step(ladder, "spp1", seed), f"spp1-random-svm-seed{seed}", seed, (maps,))


def _finetuned(family: str) -> Make:
    return lambda ladder, seed: finetune_step(ladder, family, seed)


def _svm(family: str) -> Make:
    return lambda ladder, seed: svm_step(ladder, finetune_step(ladder, family, seed), f"{family}-svm-seed{seed}", seed)


def _ridge(family: str, *, pooled: bool = False) -> Make:
    name = f"{family}-svm-ridge{'-pooled' if pooled else ''}"
    return lambda ladder, seed: ridge_step(
        ladder, _svm(family)(ladder, seed), f"{name}-seed{seed}", seed, pooled=pooled
    )


def _end_to_end(layers: str) -> Make:
    return lambda ladder, seed: end_to_end_step(ladder, layers, seed)


def _of_family(family: str, scales: str) -> tuple[Rung, ...]:
    def against(first: str, other: str) -> str:
        return other if family == "spp1" else f"spp1-{first}"

    return (
        Rung(f"{family}-pooled-svm", f"SPP-net, {scales}: SVMs on pooled windows, nothing fine-tuned", _pooled_svm(family),
             against("pooled-svm", "")),
        Rung(f"{family}-softmax", f"SPP-net, {scales}: fully connected layers fine-tuned, softmax", _finetuned(family),
             against("softmax", "spp1-pooled-svm")),
        Rung(f"{family}-svm", f"SPP-net, {scales}: SVMs in place of softmax", _svm(family), against("svm", "spp1-softmax")),
        Rung(f"{family}-svm-ridge", f"SPP-net, {scales}: SVMs and ridge box regression", _ridge(family),
             against("svm-ridge", "spp1-svm"), moves=True),
        Rung(f"{family}-network", f"SPP-net, {scales}: softmax and the network's box regression, one loss",
             _finetuned(family), against("network", "spp1-softmax"), moves=True),
    )  # fmt: skip


RUNGS: tuple[Rung, ...] = (
    Rung("rcnn", "R-CNN: fully connected layers fine-tuned, SVMs", rcnn_svm_step, way="crops"),
    Rung("rcnn-ridge", "R-CNN: SVMs and ridge box regression", rcnn_ridge_step, "rcnn", moves=True, way="crops"),
    *_of_family("spp1", "1 scale"),
    Rung("spp1-few", "SPP-net, 1 scale: SVMs, tested on R-CNN's windows", _svm("spp1"), "rcnn", way="few"),
    Rung("spp1-random-svm", "SPP-net, 1 scale: SVMs on fully connected layers that never learned", _random_svm, "spp1-pooled-svm"),
    Rung("spp1-svm-network", "SPP-net, 1 scale: SVMs and the network's box regression", _svm("spp1"), "spp1-svm-ridge", moves=True),
    Rung("spp1-svm-ridge-pooled", "SPP-net, 1 scale: SVMs and ridge box regression on pooled windows (paper)",
         _ridge("spp1", pooled=True), "spp1-svm-ridge", moves=True),
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


def chosen_rungs(names: Sequence[str]) -> tuple[Rung, ...]:
    """Rungs by name, in the ladder's order; a family's beginning, such as "spp1", stands for all of it; none: all.

    Raises:
        UserError: no such rung.

    Example:
        >>> [rung.name for rung in chosen_rungs(["e2e", "rcnn"])][:4]
        ['rcnn', 'rcnn-ridge', 'e2e-fc', 'e2e-from']
    """
    families = {name.partition("-")[0] for name in NAMES}
    for name in names:
        if name not in NAMES and name not in families:
            raise UserError(
                f"no rung named {name!r}: expected some of {', '.join(NAMES)}; or {', '.join(sorted(families))}"
            )
    if not names:
        return RUNGS
    return tuple(rung for rung in RUNGS if rung.name in names or rung.name.partition("-")[0] in names)


def partners(rung: Rung, seed: int, seeds: Sequence[int]) -> tuple[int, ...]:
    """The seeds of the models that answer together: this one and those that follow it, round the list; () where they are too few.

    With as many seeds as models, there is one such set, and it goes by the first seed.

    Example:
        >>> two = next(rung for rung in RUNGS if rung.seeds == 2)
        >>> partners(two, 1, (0, 1, 2)), partners(two, 2, (0, 1, 2)), partners(two, 1, (0, 1)), partners(two, 0, (0,))
        ((1, 2), (2, 0), (), ())
    """
    if rung.seeds == 1:
        return (seed,)
    place = list(seeds).index(seed)
    if len(seeds) < rung.seeds or (len(seeds) == rung.seeds and place > 0):
        return ()
    return tuple(seeds[(place + step) % len(seeds)] for step in range(rung.seeds))
