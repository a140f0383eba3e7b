"""Mutants of sound files: bytes changed at random, and words of a format put where others stood."""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Sequence

NUMBERS = (
    b"0", b"-1", b"1", b"0.5", b"-0.0", b"1e400", b"-1e400", b"nan", b"inf", b"NaN", b"Infinity", b"1" + b"0" * 400, b"2147483648",
    b"4294967295", b"18446744073709551616", b"1_000", b"0x10", b"010", b"1,5", b"", b" ", "\u0663".encode(), b"true", b"null", b'"7"', b"[]", b"{}",
)  # fmt: skip
TEXTS = (b"\x00", b"\xff\xfe", b"\xef\xbb\xbf", b"\x1b[2J", b"\r", b"\n", b"\t", "\u202e".encode(), "\ud55c".encode(), b"\xc0\xaf", b"../" * 8, b"/etc/passwd")  # fmt: skip
MOST_BYTES = 1_000_000  # of a mutant
_NUMBER = re.compile(rb"-?\d+(?:\.\d+)?")
_WORD = re.compile(rb"[A-Za-z_][\w.]*")


class Mutator:
    """Makes mutants of one kind of file.

    Args:
        sound: files of the kind; parts of any may come into a mutant of another.
        words: of the format; none where it is binary.
        seed: the same seed gives the same mutants.
    """

    def __init__(self, sound: Sequence[bytes], words: Sequence[bytes], seed: int) -> None:
        self.sound, self.words, self.chance = sound, words, random.Random(seed)
        self.changes: list[Callable[[bytes], bytes]] = [
            self._flip_bits, self._extreme_bytes, self._cut, self._remove, self._repeat, self._take_from_another, self._swap
        ]  # fmt: skip
        if words:
            self.changes += [self._number, self._word, self._insert_text, self._lines, self._nest] * 3

    def mutant(self, content: bytes) -> bytes:
        """One to six changes of a file."""
        for _ in range(self.chance.choice((1, 1, 1, 2, 3, 6))):
            content = self.chance.choice(self.changes)(content)[:MOST_BYTES]
        return content

    def _place(self, content: bytes | bytearray) -> int:
        """Heads hold what decides: every second place is among the first 200 bytes."""
        return self.chance.randrange(min(len(content), self.chance.choice((200, 10**9))) or 1)

    def _flip_bits(self, content: bytes) -> bytes:
        changed = bytearray(content or b"\0")
        for _ in range(self.chance.choice((1, 1, 4, 30))):
            changed[self._place(changed)] ^= 1 << self.chance.randrange(8)
        return bytes(changed)

    def _extreme_bytes(self, content: bytes) -> bytes:
        at, length = self._place(content), self.chance.choice((1, 2, 4, 8))
        value = self.chance.choice(
            (b"\0" * length, b"\xff" * length, b"\x7f" + b"\xff" * (length - 1), self.chance.randbytes(length))
        )
        return content[:at] + value + content[at + length :]

    def _cut(self, content: bytes) -> bytes:
        return content[: self.chance.randrange(len(content) + 1)]

    def _remove(self, content: bytes) -> bytes:
        at = self._place(content)
        return content[:at] + content[at + self.chance.choice((1, 4, 60, 2000)) :]

    def _repeat(self, content: bytes) -> bytes:
        at, length = self._place(content), self.chance.choice((1, 8, 60, 500))
        return content[:at] + content[at : at + length] * self.chance.choice((2, 3, 100)) + content[at + length :]

    def _take_from_another(self, content: bytes) -> bytes:
        other, at = self.chance.choice(self.sound), self._place(content)
        begin = self.chance.randrange(len(other) + 1)
        part = other[begin : begin + self.chance.choice((4, 100, 10**9))]
        return content[:at] + part + content[at + self.chance.choice((0, len(part))) :]

    def _swap(self, content: bytes) -> bytes:
        first, second = sorted((self._place(content), self._place(content)))
        length = min(self.chance.choice((1, 16, 200)), second - first)
        a, b = content[first : first + length], content[second : second + length]
        return content[:first] + b + content[first + length : second] + a + content[second + length :]

    def _number(self, content: bytes) -> bytes:
        return self._replaced(content, _NUMBER, NUMBERS)

    def _word(self, content: bytes) -> bytes:
        return self._replaced(content, _WORD, (*self.words, *TEXTS, *NUMBERS))

    def _insert_text(self, content: bytes) -> bytes:
        at = self.chance.randrange(len(content) + 1)
        return content[:at] + self.chance.choice((*TEXTS, *self.words)) + content[at:]

    def _lines(self, content: bytes) -> bytes:
        lines = content.splitlines(keepends=True) or [b""]
        at, other = self.chance.randrange(len(lines)), self.chance.randrange(len(lines))
        what = self.chance.choice(("remove", "repeat", "swap", "sort"))
        if what == "remove":
            del lines[at]
        elif what == "repeat":
            lines[at:at] = [lines[other]] * self.chance.choice((1, 2, 1000))
        elif what == "swap":
            lines[at], lines[other] = lines[other], lines[at]
        else:
            lines.sort()
        return b"".join(lines)

    def _nest(self, content: bytes) -> bytes:
        at, depth = self.chance.randrange(len(content) + 1), self.chance.choice((3, 200, 100_000))
        open_, close = self.chance.choice(
            ((b"[", b"]"), (b"{", b"}"), (b'{"a":', b"}"), (b"<a>", b"</a>"), (b"- ", b""))
        )
        return content[:at] + open_ * depth + content[at : at + 20] + close * depth + content[at + 20 :]

    def _replaced(self, content: bytes, pattern: re.Pattern[bytes], values: Sequence[bytes]) -> bytes:
        found = list(pattern.finditer(content))
        if not found:
            return content
        match = self.chance.choice(found)
        return content[: match.start()] + self.chance.choice(values) + content[match.end() :]
