"""The page and the plot of all comparisons that there are: average precision of the class against seconds of training."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from benchmarks.add_class.race import reached
from sppnet.visualize.plots import new_figure, save_figure

WAYS = {
    "old": "the other classes, before",
    "add": "the class added, from its images and what the old SVMs kept",
    "add-from-all": "the class added, from all images",
    "all": "all classes trained together",
}
COLOURS = {"add": "#D55E00", "add-from-all": "#E69F00", "all": "#0072B2"}  # of Okabe and Ito
RACE_COLOURS = ("#009E73", "#56B4E9", "#CC79A7", "#999999")


def page(entries: dict[str, Any], picture: str) -> str:
    """All comparisons as Markdown; ``picture`` is the plot's file name."""
    lines = ["# A class more: adding, training anew, Faster R-CNN", "",
             "Made by `python -m benchmarks.add_class`; every figure is in its JSON file.", "",
             "A detector (frozen backbone, fully connected layers fine-tuned, SVMs, ridge box regression) learns all classes but one, from the",
             "images that do not show that one. Then the class is added: one SVM and one box regressor, the rest stays as it is. It is",
             "compared with training all classes anew, and with what a user of torchvision would do: Faster R-CNN with the same backbone",
             "and the same ImageNet weights, fine-tuned for the one class on its images, all layers learning, until it is as good.", "",
             "*Training*: seconds of learning, on this machine; of adding a class, the median of several times from the start, in a program",
             "that runs. Proposals and maps are on disk before; *made anew* is what making them for the images learned from would take,",
             "measured on a few of them. Of Faster R-CNN only training counts: neither its tests nor starting. What the detector learned of the",
             "other classes is the first row of a table: it was there before the class, and is not counted again.", "",
             f"![average precision against seconds]({picture})"]  # fmt: skip
    for entry in entries.values():
        lines += ["", *section(entry)]
    return "\n".join(lines) + "\n"


def section(entry: dict[str, Any]) -> list[str]:
    """One comparison."""
    settings, parts, races = entry["settings"], entry["parts"], entry["races"]
    name, target = settings["name"], target_of(entry, settings["name"])
    lines = [f"## {name}: {title(settings)}", "",
             f"| way | images | objects of {name} | training, s | made anew, s | AP, area | AP, 11-point |",
             "|---|--:|--:|--:|--:|--:|--:|"]  # fmt: skip
    for part, row in ((part, parts[part]) for part in WAYS if part in parts):
        learned, here = row["learned from"], row["test"]["classes"].get(name)
        anew = f"{sum(row['anew'].values()):.0f}" if "anew" in row else "-"
        figures = (_percent(here["area"]), _percent(here["voc07"])) if here else ("-", "-")
        lines.append(
            f"| {WAYS[part]} | {learned['images']} | {learned['objects'] or '-'} | {_seconds(row['seconds'])} | {anew} | "
            f"{figures[0]} | {figures[1]} |"
        )
    for label, row in races.items():
        if row["curve"]:
            best = max(row["curve"], key=lambda point: point["area"])
            learned = row["learned from"]
            lines.append(
                f"| Faster R-CNN, {label}: best of {len(row['curve'])} tests | {learned['images']} | {learned['objects']} | "
                f"{_seconds(best['seconds'])} | none | {_percent(best['area'])} | {_percent(best['voc07'])} |"
            )
    lines += ["", *_sentences(entry, target)]
    ran = [row["environment"] for row in [*parts.values(), *races.values()]]
    return [*lines, "", *dict.fromkeys(f"- {text}" for text in ran)]


def title(settings: dict[str, Any]) -> str:
    """What a comparison is on, in a few words."""
    images = f"the first {settings['images']} images" if settings["images"] else "all images"
    tested = f"the first {settings['test_images']}" if settings["test_images"] else "all"
    return (
        f"{settings['data']}, {images} of {settings['train_split']}, tested on {tested} of {settings['test_split']}; "
        f"{settings['backbone']}, short side {settings['short_side']}, {_length(settings)}"
    )


def _length(settings: dict[str, Any]) -> str:
    if "steps" in settings:  # of what was measured before fine-tuning was told in epochs
        return f"{settings['steps']} steps"
    return f"{settings['epochs']} epochs" if settings["epochs"] else "2500 steps"


def target_of(entry: dict[str, Any], name: str) -> float | None:
    """The area AP of the class as it was added from its own images: what Faster R-CNN has to reach; None before that was measured."""
    row = entry["parts"].get("add")
    return None if row is None else row["test"]["classes"][name]["area"]


def _sentences(entry: dict[str, Any], target: float | None) -> list[str]:
    parts, races, name = entry["parts"], entry["races"], entry["settings"]["name"]
    lines = []
    for part in ("add", "add-from-all"):
        if part not in parts:
            continue
        row = parts[part]
        times = ", ".join(f"{value:.1f}" for value in row["each time"])
        stages = ", ".join(f"{stage} {value:g} s" for stage, value in row["stages"].items())
        anew = ", ".join(f"{what} {value:.0f} s" for what, value in row["anew"].items())
        text = f"- *{WAYS[part]}*: {times} s; of the last: {stages}. Old negatives: {row['learned from']['old negatives']}. "
        text += f"Made anew: {anew}. The weights of the others are "
        text += "the same, bit for bit." if row["same weights"] else "**not** the same."
        lines.append(text + _others(parts.get("old"), row, name))
    if "add" in parts and "all" in parts:
        add, everything = parts["add"], parts["all"]
        change = 100 * (add["test"]["classes"][name]["area"] - everything["test"]["classes"][name]["area"])
        lines.append(
            f"- Training all classes anew takes {everything['seconds'] / add['seconds']:.0f} times as long as adding the class, whose AP is "
            f"{abs(change):.1f} points {'higher' if change > 0 else 'lower'} when added."
        )
    for label, row in races.items():
        lines.append(f"- {_race(label, row, target, parts.get('add'))}")
    return lines


def _others(before: dict[str, Any] | None, row: dict[str, Any], name: str) -> str:
    if before is None:
        return ""
    pairs = [
        (each["area"], before["test"]["classes"][other]["area"])
        for other, each in row["test"]["classes"].items()
        if other != name and each["area"] is not None
    ]
    if not pairs:
        return ""
    largest = max(abs(after - was) for after, was in pairs)
    means = [100 * sum(values) / len(pairs) for values in zip(*pairs, strict=True)]
    return f" Their mAP before: {means[1]:.2f}, after: {means[0]:.2f}; the largest change of one class is {100 * largest:.3f} points."


def _race(label: str, row: dict[str, Any], target: float | None, add: dict[str, Any] | None) -> str:
    done = reached(row["curve"], target)
    told = f"Faster R-CNN, {label} ({row['precision']}, {row['seconds a step']:.2f} s a step): "
    if target is None or not row["curve"]:
        return told + "not compared yet."
    if done is None:
        last = row["curve"][-1]["seconds"]
        text = f"not as good as the added class ({_percent(target)}) in {_seconds(last)} s of training"
        return told + text + (f", {last / add['seconds']:.0f} times as long." if add else ".")
    text = f"as good as the added class ({_percent(target)}) after more than {_seconds(done[0])} and at most {_seconds(done[1])} s"
    return (
        told
        + text
        + (f": {done[0] / add['seconds']:.0f} to {done[1] / add['seconds']:.0f} times as long." if add else ".")
    )


def plot(entries: dict[str, Any], path: Path) -> None:
    """Draw one panel for each comparison.

    Args:
        entries: at least one.
        path: .png, .jpg, .pdf or .svg.
    """
    figure = new_figure(7.5, 4.2 * len(entries))
    for axes, entry in zip(figure.subplots(len(entries), 1, squeeze=False)[:, 0], entries.values(), strict=True):
        _panel(axes, entry)
    save_figure(figure, path)


def _panel(axes: Any, entry: dict[str, Any]) -> None:
    from matplotlib.ticker import LogLocator, NullFormatter

    settings, name = entry["settings"], entry["settings"]["name"]
    target = target_of(entry, name)
    if target is not None:
        axes.axhline(100 * target, color="0.7", linewidth=0.8, linestyle="--")
    for part, colour in COLOURS.items():
        if part in entry["parts"]:
            row = entry["parts"][part]
            area = 100 * row["test"]["classes"][name]["area"]
            axes.plot(row["seconds"], area, "o", color=colour, label=WAYS[part])
            if "anew" in row:
                longer = row["seconds"] + sum(row["anew"].values())
                axes.plot([row["seconds"], longer], [area, area], color=colour, linewidth=1, linestyle=":")
                axes.plot(
                    longer,
                    area,
                    "o",
                    markerfacecolor="white",
                    color=colour,
                    label="the same, proposals and maps made anew",
                )
    for colour, (label, row) in zip(_again(RACE_COLOURS), entry["races"].items(), strict=False):
        seconds, areas = ([point[what] for point in row["curve"]] for what in ("seconds", "area"))
        axes.plot(seconds, [100 * area for area in areas], ".-", color=colour, label=f"Faster R-CNN, {label}")
    axes.set_xscale("log")
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.xaxis.set_major_formatter("{x:g}")
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.set_ylim(bottom=0)
    axes.set_xlabel("seconds of training", fontsize=9)
    axes.set_ylabel(f"AP of {name} (area), %", fontsize=9)
    axes.set_title(title(settings), fontsize=8)
    axes.tick_params(labelsize=8)
    axes.grid(color="0.92", linewidth=0.6)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    if axes.get_legend_handles_labels()[0]:
        handles, labels = axes.get_legend_handles_labels()
        once = dict(zip(labels, handles, strict=True))
        axes.legend(once.values(), once.keys(), fontsize=6.5, frameon=False, loc="best")


def _again(colours: tuple[str, ...]) -> Iterable[str]:
    while True:
        yield from colours


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{100 * share:.1f}"


def _seconds(value: float) -> str:
    return f"{value:.1f}" if value < 100 else f"{value:.0f}"
