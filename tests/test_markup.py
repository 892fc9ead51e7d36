from __future__ import annotations

from html.parser import HTMLParser

from hypothesis import given
from hypothesis import strategies as st

from fluxentropy.markup import UNPRINTABLE, Markup, el, join, picture

texts = st.text(st.characters(codec="utf-8")) | st.text("<>&\"'/=! abonclick\n\t\r\x00")


class Parser(HTMLParser):
    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.found: list[object] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, attrs))

    def handle_data(self, data: str) -> None:
        self.found.append(data)


@given(content=texts, value=texts)
def test_any_text_comes_back_as_text(content: str, value: str) -> None:
    def shown(text: str) -> str:
        return UNPRINTABLE.sub(lambda match: match[0] if match[0] in "\n\t" else picture(match[0]), text)

    found = Parser(el("p", content, data_tip=value)).found
    assert found[0] == ("p", [("data-tip", shown(value))])
    assert "".join(map(str, found[1:])) == shown(content)


def test_only_markup_is_markup() -> None:
    assert join(["<", Markup("<br>"), None, 3, ("&",)]) == "&lt;<br>3&amp;"
    assert el("td", (1.5).__str__(), x=0.1 + 0.2, width=3, checked=True, hidden=False, alt=None) == (
        '<td x="0.3" width="3" checked>1.5</td>'
    )
