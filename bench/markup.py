"""HTML and SVG as trees of elements: they are escaped where the tree is written, so no label can become markup."""

from __future__ import annotations

from collections.abc import Iterable
from xml.etree import ElementTree

Element = ElementTree.Element
Content = Element | str | None


def element(tag: str, *content: Content, **attributes: str | float | None) -> Element:
    """An element with its content.

    Args:
        tag: Its name.
        content: Elements and texts in their order; None is left out.
        attributes: By name, `_` standing for `-` and a last `_` for nothing (`class_`); None is left out.
    """
    made = ElementTree.Element(tag)
    for name, value in attributes.items():
        if value is not None:
            made.set(name.rstrip("_").replace("_", "-"), value if isinstance(value, str) else f"{value:g}")
    for item in content:
        if isinstance(item, str):
            if len(made):
                made[-1].tail = (made[-1].tail or "") + item
            else:
                made.text = (made.text or "") + item
        elif item is not None:
            made.append(item)
    return made


def items(texts: Iterable[str]) -> Element | None:
    """A list; None for no texts."""
    entries = [element("li", text) for text in texts]
    return element("ul", *entries) if entries else None


def html_text(root: Element) -> str:
    """The document."""
    return "<!doctype html>\n" + ElementTree.tostring(root, encoding="unicode", method="html") + "\n"
