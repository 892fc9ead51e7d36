from __future__ import annotations

import re

from fluxentropy.markdowntext import to_markup
from fluxentropy.markup import el

TEXT = """\
First *line* of __two__
goes on with ![not](alone.png)

- one
  and on
  - inner `a|b`
- two

| name | x | p |
| :---: | --- | ---: |
| a\\|b | +1.5 [0.1, 2] | 0.5 |
| `<i>` | -2 | - |

![a_b](c ä.png)

![a_b](c%20ä.png)

![not](a picture)

```sh
## not a heading

<b>
```
#### Small
"""
PLAIN = (
    r"<b>a</b> [x](https://example.com) <https://example.com> &lt;b&gt;&amp; \* \| a  b ![x](javascript:a) 1) <!-- -->"
)


def markup(text: str) -> str:
    made = to_markup(text, picture=lambda alt, name: el("img", alt=alt, src=name), level=1)
    return re.sub(r"\n(?=<)|(?<=>)\n", "", made)


def test_all_that_the_package_writes() -> None:
    box = '<div class="wide" tabindex="0" role="group" aria-label='
    assert markup(TEXT) == (
        "<p>First *line* of __two__\ngoes on with ![not](alone.png)</p>"
        "<ul><li>one\nand on<ul><li>inner <code>a|b</code></li></ul></li><li>two</li></ul>"
        f'{box}"table"><table><thead><tr><th scope="col">name</th><th scope="col" class="num">x</th>'
        '<th scope="col" class="num">p</th></tr></thead><tbody>'
        '<tr><td>a|b</td><td class="num">+1.5 [0.1, 2]</td><td class="num">0.5</td></tr>'
        '<tr><td><code>&lt;i&gt;</code></td><td class="num">-2</td><td class="num">-</td></tr></tbody></table></div>'
        '<p>![a_b](c ä.png)</p><img alt="a b" src="c ä.png"><p>![not](a picture)</p>'
        f'{box}"details"><pre><code>## not a heading\n\n&lt;b&gt;</code></pre></div>'
        "<h5>Small</h5>"
    )


def test_all_else_stays_text() -> None:
    """No HTML, no links, no entities, no pictures from elsewhere: what is in the text is what a reader sees."""
    shown = PLAIN.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    assert markup(PLAIN) == f"<p>{shown}</p>"
    assert markup("<div>\n\n> a\n\n    b\n\n---\n\n[x]: y\n\x00\x1b") == (
        "<p>&lt;div&gt;</p><p>&gt; a</p><p>b</p><p>---</p><p>[x]: y\n␀␛</p>"
    )
