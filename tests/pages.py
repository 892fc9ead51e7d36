"""A page taken apart, as a browser would."""

from __future__ import annotations

import base64
import hashlib
from html.parser import HTMLParser

VOID = {"br", "img", "input", "meta"}
POLICY = "default-src 'none'; script-src 'none'; style-src '{}'; img-src data:; base-uri 'none'; form-action 'none'"


class Page(HTMLParser):
    """Elements as (tag, attributes, [text]); fails where one is not closed in order, or there is a comment."""

    def __init__(self, source: str) -> None:
        super().__init__(convert_charrefs=True)
        self.elements: list[tuple[str, dict[str, str], list[str]]] = []
        self.text = ""  # without the style sheet and the title
        self._open: list[tuple[str, dict[str, str], list[str]]] = []
        self.feed(source)
        self.close()
        assert self._open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        element = (tag, {name: value or "" for name, value in attrs}, [""])
        assert len(element[1]) == len(attrs)
        self.elements.append(element)
        if tag not in VOID:
            self._open.append(element)

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop()[0] == tag

    def handle_data(self, data: str) -> None:
        for _, _, text in self._open:
            text[0] += data
        if not {"style", "title"} & {tag for tag, _, _ in self._open}:
            self.text += data

    def handle_comment(self, data: str) -> None:
        raise AssertionError(f"a comment: {data}")

    def all(self, tag: str) -> list[dict[str, str]]:
        return [attributes for name, attributes, _ in self.elements if name == tag]

    def texts(self, tag: str, **attributes: str) -> list[str]:
        wanted = {name.rstrip("_").replace("_", "-"): value for name, value in attributes.items()}
        return [text[0] for name, found, text in self.elements if name == tag and wanted.items() <= found.items()]

    def check_self_contained(self) -> None:
        """Nothing runs, nothing is loaded, and the policy says so and names the one style sheet."""
        names = {name for _, attributes, _ in self.elements for name in attributes}
        assert not [name for name in names if name.startswith("on") or name in ("style", "srcset", "action", "data")]
        ids = [attributes["id"] for _, attributes, _ in self.elements if "id" in attributes]
        assert len(ids) == len(set(ids))
        for _, attributes, _ in self.elements:
            assert "href" not in attributes or attributes["href"].removeprefix("#") in ids
            assert attributes.get("src", "data:image/png;base64,").startswith("data:image/png;base64,")
        (style,) = self.texts("style")
        assert "url(" not in style and "@import" not in style
        digest = "sha256-" + base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
        assert [meta["content"] for meta in self.all("meta") if "http-equiv" in meta] == [POLICY.format(digest)]
        assert not {"script", "link", "iframe", "object", "base"} & {tag for tag, _, _ in self.elements}
