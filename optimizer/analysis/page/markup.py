"""HTML as a tree, in which whatever a text holds stays a text."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET
from xml.etree.ElementTree import Element

_UNSEEN = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff\ufeff\ufffe\uffff]")
"""What HTML does not allow, or what turns the text around it about."""


def element(tag: str, *content: str | Element, **attributes: object) -> Element:
    """An element.

    Args:
        tag: Its name.
        content: Texts and elements, in order.
        attributes: By name, with _ for - and behind names that Python keeps for itself; None and False are left out,
            True stands alone.
    """
    there = {name: value for name, value in attributes.items() if value is not None and value is not False}
    made = Element(tag, {_name(name): _value(value) for name, value in there.items()})
    last: Element | None = None
    for each in content:
        if isinstance(each, Element):
            made.append(each)
            last = each
        elif last is None:
            made.text = (made.text or "") + seen(each)
        else:
            last.tail = (last.tail or "") + seen(each)
    return made


def seen(text: str) -> str:
    """A text without characters that a page may not hold."""
    return _UNSEEN.sub("\ufffd", text)


def to_html(root: Element) -> str:
    """The tree as HTML."""
    return ET.tostring(root, encoding="unicode", method="html")


def _name(name: str) -> str:
    return name.rstrip("_").replace("_", "-")


def _value(value: object) -> str:
    return "" if value is True else seen(str(value))
