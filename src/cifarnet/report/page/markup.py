"""HTML whose every text is escaped, unless it was made here."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from html import escape

__all__ = ["Markup", "element", "join", "name", "table"]

#: Letters that HTML cannot hold, or that nobody would see: controls but tab and newline, and halves of pairs.
_UNSEEN = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff\ufffe\uffff]")

_VOID = ("br", "img", "link", "meta", "source")


class Markup(str):
    """Text that is HTML already. Only functions of this module make it."""

    __slots__ = ()


def element(tag: str, *children: str, **attributes: object) -> Markup:
    """One element.

    Args:
        tag: Its name.
        children: What is in it; escaped unless it is `Markup`.
        attributes: ``class_`` is ``class``, ``aria_label`` is ``aria-label``; ``True`` stands without a value, ``None``
            and ``False`` are left out.

    Example:
        >>> element("p", "a < b", element("br"), id="x", hidden=True, class_=None)
        '<p id="x" hidden>a &lt; b<br></p>'
    """
    told = "".join(
        f" {key.rstrip('_').replace('_', '-')}" + ("" if value is True else f'="{_escaped(str(value))}"')
        for key, value in attributes.items()
        if value is not None and value is not False
    )
    end = "" if tag in _VOID else f"</{tag}>"
    return Markup(f"<{tag}{told}>{join(children)}{end}")


def join(parts: Iterable[str], separator: str = "") -> Markup:
    """Several of them in a row, escaped unless they are `Markup`."""
    return Markup(separator.join(part if isinstance(part, Markup) else _escaped(part) for part in parts))


def name(text: str) -> Markup:
    """A name that somebody else gave: its letters, in whatever direction, do not touch the text around it."""
    return element("bdi", text)


def table(
    caption: str, head: Sequence[str], rows: Iterable[Sequence[str]], *, texts: Sequence[int] = (0,), id_: str
) -> Markup:
    """A table with a caption; the first cell of a row is its header. Where it is too wide, it alone scrolls.

    Args:
        caption: What it shows.
        head: Of the columns.
        rows: As many cells each.
        texts: Which columns are texts, from 0; the others are numbers.
        id_: Of the caption, by which the part that scrolls is called.
    """
    kinds = ["text" if i in texts else "number" for i in range(len(head))]
    cells = [element("th", cell, scope="col", class_=kind) for cell, kind in zip(head, kinds, strict=True)]
    lines = [
        join(
            element("td", cell, class_=kind) if i else element("th", cell, scope="row", class_=kind)
            for i, (cell, kind) in enumerate(zip(row, kinds, strict=True))
        )
        for row in rows
    ]
    body = element(
        "table",
        element("caption", caption, id=id_),
        element("thead", element("tr", *cells)),
        element("tbody", join((element("tr", line) for line in lines), "\n")),
    )
    return element("div", body, class_="scroll", role="region", tabindex=0, aria_labelledby=id_)


def _escaped(text: str) -> str:
    return escape(_UNSEEN.sub(lambda unseen: unseen[0].encode("unicode_escape").decode(), text))
