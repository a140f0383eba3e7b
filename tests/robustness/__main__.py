"""Read mutants by the thousand: `python -m tests.robustness --count 10000 --seed 1`.

Each mutant is read in a watched child process. What is not clean (a traceback, a crash, a hang by processor time, too much
memory, another answer, a message of several lines, words printed by a library) is made smaller and saved.
"""

from __future__ import annotations

import argparse
import hashlib
import tempfile
from collections import Counter
from pathlib import Path

from tests.robustness.kinds import KINDS
from tests.robustness.mutants import Mutator
from tests.robustness.watch import CLEAN, Verdict, Watched

REDUCTIONS = 200  # tries to make a failure smaller


def run(
    child: Watched, kind: str, count: int, seed: int, keep: Path | None = None
) -> tuple[Counter[str], list[Path | str], int]:
    """Read so many mutants of one kind.

    Returns:
        How often each verdict was given; the failures, as saved, or in words where ``keep`` is None; the peak of memory in bytes.
    """
    with tempfile.TemporaryDirectory() as folder:
        paths = KINDS[kind].sound(Path(folder))
        sound = {path.relative_to(folder).as_posix(): path.read_bytes() for path in paths}
    mutator = Mutator(list(sound.values()), KINDS[kind].words, seed)
    names, verdicts, failures, peak = list(sound), Counter[str](), list[Path | str](), 0
    for name in names:  # what is sound is read
        verdict = child.read(kind, name, sound[name])
        assert verdict.kind == "right", f"{kind}, the sound {name}: {verdict}"
    for number in range(count):
        name = names[number % len(names)]
        content = mutator.mutant(sound[name])
        verdict = child.read(kind, name, content)
        verdicts[verdict.kind] += 1
        peak = max(peak, verdict.peak)
        if verdict.kind not in CLEAN:
            failures.append(
                f"{kind} {name}, seed {seed}, number {number}: {verdict.kind}: {verdict.told}"
                if keep is None
                else _save(child, kind, keep, name, content, verdict)
            )
    return verdicts, failures, peak


def _save(child: Watched, kind: str, keep: Path, name: str, content: bytes, verdict: Verdict) -> Path:
    """The smallest part of a failure that still fails in the same way, beside what was said."""
    tries, size = 0, len(content) // 2
    while size and tries < REDUCTIONS and verdict.kind != "hang":
        for at in range(0, len(content), size):
            smaller = content[:at] + content[at + size :]
            tries += 1
            if tries < REDUCTIONS and child.read(kind, name, smaller).kind == verdict.kind:
                content = smaller
                break
        else:
            size //= 2
    folder = keep / kind
    folder.mkdir(parents=True, exist_ok=True)
    key = hashlib.blake2b(content, digest_size=4).hexdigest()
    path = folder / f"{verdict.kind}-{key}-{name.replace('/', '-')}"
    path.write_bytes(content)
    path.with_name(path.name + ".why").write_text(f"{name}\n{verdict.told}\n")
    return path


def main() -> int:
    """Exit status: 0 where all were clean, else 1."""
    parser = argparse.ArgumentParser(prog="python -m tests.robustness", description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--count", type=int, default=1000, help="mutants of each kind")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--kinds", nargs="+", default=list(KINDS), choices=list(KINDS))
    parser.add_argument("--keep", type=Path, default=Path("robustness-failures"), help="failures are saved there")
    options = parser.parse_args()
    clean = True
    with Watched() as child:
        for kind in options.kinds:
            verdicts, failures, peak = run(child, kind, options.count, options.seed, options.keep)
            counts = ", ".join(f"{name} {number}" for name, number in sorted(verdicts.items()))
            print(f"{kind}: {counts}; peak of memory {peak / 1e9:.2f} GB", flush=True)
            for path in failures:
                print(f"    {path}", flush=True)
            clean = clean and not failures
    return 0 if clean else 1


if __name__ == "__main__":
    raise SystemExit(main())
