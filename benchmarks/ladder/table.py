"""The ladder as Markdown: average precision by seed, what each rung gains, where the time goes, and what it left on disk."""

from __future__ import annotations

import statistics
from typing import Any

from benchmarks.ladder.claims import claims_table
from benchmarks.ladder.results import Results, average_precision, bytes_of, gain, seconds_of, without_localisation
from benchmarks.ladder.rungs import RUNGS
from benchmarks.ladder.testing import STAGES
from sppnet.models.backbones import OWN


def ladder_text(results: Results) -> str:
    """All tables, and what they were measured on; without results, a word on that."""
    if not results:
        return "No results yet."
    parts = [_accuracy(results), "**What it costs**", _costs(results)]
    claims = claims_table(results)
    if claims:
        parts += ["**The papers' claims, asked again**", claims]
    return "\n\n".join([*parts, _circumstances(results)])


def _accuracy(results: Results) -> str:
    rows = [
        "| rung | | mAP (VOC 2007) | of each seed | mAP (area) | none badly placed | gain, points | over |",
        "|---|---|--:|--:|--:|--:|--:|---|",
    ]
    for rung in RUNGS:
        of_seeds = results.get(rung.name)
        if not of_seeds:
            continue
        each = ", ".join(f"{value:.1f}" for value in average_precision(of_seeds).values)
        spread = gain(results, rung.name, rung.against)
        title = next(iter(of_seeds.values()))["title"]
        rows.append(
            f"| {rung.name} | {title} | **{average_precision(of_seeds).text()}** | {each} | "
            f"{average_precision(of_seeds, 'area').text()} | {without_localisation(of_seeds).text()} | "
            f"{spread.text(signed=True)} | "
            f"{rung.against if spread.values else ''} |"
        )
    return "\n".join(rows)


def _costs(results: Results) -> str:
    stages = ["proposals", "conv", "pooling", "fully connected", "nms"]  # of `STAGES`
    rows = [
        f"| rung | training, min | of which | test, s an image | {' | '.join(stages)} | disk, GB |",
        f"|---|--:|---|--:|{'--:|' * len(stages)}--:|",
    ]
    for name, of_seeds in results.items():
        train, test = seconds_of(of_seeds, "train_seconds"), seconds_of(of_seeds, "test_seconds", STAGES)
        most = sorted((stage for stage in train if train[stage] >= 1), key=lambda stage: -train[stage])
        where = ", ".join(f"{stage} {train[stage] / 60:.1f}" for stage in most)
        figures = " | ".join(f"{test[stage]:.3f}" for stage in STAGES)
        rows.append(
            f"| {name} | {sum(train.values()) / 60:.1f} | {where} | {sum(test.values()):.3f} | {figures} | "
            f"{bytes_of(of_seeds) / 1e9:.2f} |"
        )
    return "\n".join(rows)


def _circumstances(results: Results) -> str:
    every = [result for of_seeds in results.values() for result in of_seeds.values()]
    settings: dict[str, Any] = every[0]["settings"]
    seeds = sorted({seed for of_seeds in results.values() for seed in of_seeds})
    loads = [result["environment"]["load before"] for result in every]
    weights = settings["weights"] or ("of the shipped model" if settings["backbone"] == OWN else "random")
    lines = [
        "mAP in percent, mean ± standard deviation over seeds; a gain is that of each seed by itself, then mean and deviation, so what "
        "all rungs of a seed share does not blur it. *Told apart*: by a 95 % interval of the mean over seeds (Student's t), which "
        "says nothing of other test images. *None badly placed*: the area under the curve without detections whose only fault is "
        "an overlap of .1 to .5, or a second answer to one object.",
        "Training: the work of every step that a rung builds on, proposals and maps included (told from a sample of images), also where "
        "another rung had paid for it. Test: one image after another; decoding is left out. *conv*: SPP-net resizes and convolves "
        "the image, R-CNN cuts out, warps and convolves windows. Disk: all that these steps left, checkpoints included.",
        f"{every[0]['train_images']} images of {settings['train_split']!r} to learn from, {every[0]['images']} of "
        f"{settings['test_split']!r} to test on, seeds {', '.join(map(str, seeds))}; {settings['backbone']}, weights {weights}; levels "
        f"{tuple(settings['levels'])}, fully connected {tuple(settings['hidden'])}; short side {settings['short_side']} px or "
        f"{settings['scales']} px; {settings['proposer']}; {settings['steps']} steps of fine-tuning, "
        f"{'with' if settings['mirrored'] else 'without'} mirror images, {settings['epochs']} epochs end to end.",
        *sorted({result["environment"]["text"] + "." for result in every}),
        f"Load of the machine when the tests began: {min(loads):.1f} to {max(loads):.1f}, {statistics.median(loads):.1f} in the middle.",
    ]
    return "\n\n".join(lines)
