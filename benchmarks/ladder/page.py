"""Put what the ladder measured into a page that people wrote, between two markers."""

from __future__ import annotations

from pathlib import Path

from sppnet.errors import UserError

BEGIN, END = "<!-- table -->", "<!-- end of table -->"


def filled(page: str, text: str) -> str:
    """The page with this text between its markers, in place of what was there.

    Raises:
        ValueError: not both markers once, in this order.

    Example:
        >>> filled("Before <!-- table -->old<!-- end of table --> after", "new")
        'Before <!-- table -->\\n\\nnew\\n\\n<!-- end of table --> after'
    """
    if page.count(BEGIN) != 1 or page.count(END) != 1 or page.index(BEGIN) > page.index(END):
        raise ValueError(f"expected {BEGIN} and, after it, {END}, each once")
    before, rest = page.split(BEGIN)
    return f"{before}{BEGIN}\n\n{text}\n\n{END}{rest.split(END)[1]}"


def check_page(path: Path) -> str:
    """What a page says, which has room for a table.

    Raises:
        UserError: no such page, or one without the markers.
    """
    try:
        page = path.read_text(encoding="utf-8")
        filled(page, "")
    except FileNotFoundError as error:
        raise UserError(f"{path}: no such page; expected one with {BEGIN} and, after it, {END}") from error
    except ValueError as error:
        raise UserError(f"{path}: {error}") from error
    return page


def fill_page(path: Path, text: str) -> None:
    """Fill in a page; raises what `check_page` does."""
    path.write_text(filled(check_page(path), text), encoding="utf-8")
