"""A report, parsed as a browser would."""

from __future__ import annotations

import json
from html.parser import HTMLParser
from typing import Any


class Page(HTMLParser):
    """A report, parsed: its elements in order, each with its attributes and the text directly in it and below."""

    def __init__(self, source: str) -> None:
        super().__init__()
        self.source = source
        self.elements: list[tuple[str, dict[str, str | None], list[str]]] = []
        self._open: list[tuple[str, list[str]]] = []
        self.feed(source)
        self.close()
        assert not self._open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        text: list[str] = []
        self.elements.append((tag, dict(attrs), text))
        if tag not in ("meta", "input", "img"):
            self._open.append((tag, text))

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop()[0] == tag

    def handle_data(self, data: str) -> None:
        for _, text in self._open:
            text.append(data)

    def texts(self, tag: str, **attributes: str) -> list[str]:
        """Of all elements that have the attributes, with runs of white space as one space."""
        return [
            " ".join("".join(text).split())
            for name, attrs, text in self.elements
            if name == tag and all((attrs.get(key.rstrip("_")) or "") == value for key, value in attributes.items())
        ]

    @property
    def paths(self) -> list[str]:
        """Of the rows, in order."""
        return self.texts("bdi")

    def cells(self) -> list[list[str]]:
        """What the summary rows show, but for the cell of the path."""
        rows: list[list[str]] = []
        for tag, attrs, text in self.elements:
            if tag == "tr" and attrs.get("class") == "summary":
                rows.append([])
            elif tag == "td" and "data-value" in attrs and attrs.get("class") != "name":
                rows[-1].append("".join(text).strip())
        return rows

    def data(self) -> list[Any]:
        """What the scripts hold as JSON: the details in order, then the page's own."""
        scripts = [(attrs, text) for tag, attrs, text in self.elements if tag == "script"]
        return [json.loads("".join(text)) for attrs, text in scripts if attrs.get("type") == "application/json"]

    @property
    def tags(self) -> list[str]:
        return [tag for tag, _, _ in self.elements]
