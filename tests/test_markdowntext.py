from __future__ import annotations

from fluxentropy.markdowntext import to_markup
from fluxentropy.markup import el

TEXT = """\
First *line*
goes on

- one
  and on
  - inner `a|b`
- two

| name | x | p |
| --- | --- | --- |
| a\\|b | +1.5 [0.1, 2] | 0.5 |
| `<i>` | -2 | - |

![a_b](c.png)
![not](a picture)

```sh
## not a heading

<b>
```
#### Small
"""


def test_all_that_the_package_writes() -> None:
    page = to_markup(TEXT, picture=lambda alt, name: el("img", alt=alt, src=name), level=1)
    box = '<div class="wide" tabindex="0" role="group" aria-label='
    assert page == (
        "<p>First *line* goes on</p>"
        "<ul><li>one and on<ul><li>inner <code>a|b</code></li></ul></li><li>two</li></ul>"
        f'{box}"table"><table><thead><tr><th scope="col">name</th><th scope="col" class="num">x</th>'
        '<th scope="col" class="num">p</th></tr></thead><tbody>'
        '<tr><td>a|b</td><td class="num">+1.5 [0.1, 2]</td><td class="num">0.5</td></tr>'
        '<tr><td><code>&lt;i&gt;</code></td><td class="num">-2</td><td class="num">-</td></tr></tbody></table></div>'
        '<img alt="a b" src="c.png">'
        f'{box}"details"><pre><code>## not a heading\n\n&lt;b&gt;</code></pre></div>'
        "<h5>Small</h5>"
    )
