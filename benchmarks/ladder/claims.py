"""The claims of the papers that the ladder asks again, with the papers' figures: gained or not, on this data, by this network."""

from __future__ import annotations

from dataclasses import dataclass

from benchmarks.ladder.results import Results, gain, verdict


@dataclass(frozen=True)
class Claim:
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


def claims_table(results: Results) -> str:
    """A row for each claim that the results have both sides of, as Markdown; empty where there is none."""
    rows = [
        "| claim | rungs | the paper's mAP | here, points | seeds | told apart from none |",
        "|---|---|---|--:|--:|---|",
    ]
    for claim in CLAIMS:
        spread = gain(results, claim.rung, claim.other)
        if spread.values:
            paper = f"{claim.paper} ({claim.source})" if claim.paper else "not reported"
            rows.append(
                f"| {claim.text} | {claim.rung} - {claim.other} | {paper} | {spread.text(signed=True)} | "
                f"{len(spread.values)} | {verdict(spread)} |"
            )
    return "\n".join(rows) if len(rows) > 2 else ""
