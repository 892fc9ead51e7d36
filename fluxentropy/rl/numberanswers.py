r"""The number that a response gives as its answer, exactly, or that it gives none.

Where the response says what its answer is, in the rest of a line after `####` or in `\boxed{...}` (the last of these
counts), that part has to be one number; else the last number of the text is the answer. A number is

    18   -18   - 18   1,800   18.50   .5   18e3   3/4   2 1/2   2\frac{1}{2}   2½   18k   18 thousand, million, billion

with a currency before it and a unit after it: 18 $, 18 % and 18 kg are all 18. What stands in an expression (20 - 2),
a time (18:30), a date, a range, a version or a name (x18, 18x) is no number; `=` ends what is before it.
"""

from __future__ import annotations

import re
import unicodedata
from fractions import Fraction

MARK = "####"
LONGEST = 60  # digits of a number, and of its exponent's value
PLAIN = r"(?:[0-9]{1,3}(?:,[0-9]{3})+|[0-9]+)(?:\.[0-9]+)?|\.[0-9]+"
QUANTITY = re.compile(
    rf"(?P<whole>[0-9]+)(?:[ \t]+and)?[ \t]+(?P<top>[0-9]+)[ \t]*/[ \t]*(?P<bottom>[0-9]+)"
    rf"|(?P<number>{PLAIN})(?:[eE](?P<power>[+-]?[0-9]+))?(?:[ \t]*/[ \t]*(?P<over>{PLAIN}))?"
)
SIGN = re.compile(r"[-−–][ \t]*[$€£¥]?[ \t]*\Z")
HYPHEN = re.compile(r"\w[-−–]\Z|[^\W\d_]{2,}[ \t]+[-−–][ \t]+[$€£¥]?\Z")  # of a word, not of a number
GLUED = re.compile(r"[0-9][.,:/][$]?\Z|[0-9][ \t]+\Z|[\w^\\]\Z")  # then the number is only the end of something
OPERATOR = re.compile(r"[ \t]*[^\W\d_]*[ \t)%°]*[-−–+*/×·÷^][ \t($€£¥]*\Z")  # between two numbers: an expression
AROUND = 80  # characters that are looked at on each side of a number
SCALES = {"k": 3, "K": 3, "M": 6, "B": 9, "bn": 9, "thousand": 3, "million": 6, "billion": 9, "trillion": 12}
UNITS = frozenset("mghsdlLCFc")  # one letter; any other is a variable
COMMANDS = re.compile(r"\\(?:text|textbf|mathbf|mathrm|mbox|boldsymbol)\s*\{([^{}]*)\}")
FRACTION = re.compile(r"\\[dt]?frac\s*(?:\{([^{}]*)\}\s*\{([^{}]*)\}|([0-9])\s*([0-9]))")


def answer_of(response: str) -> Fraction | None:
    r"""The number that a response gives, None where it gives none.

    >>> answer_of("So it is \\boxed{2\\frac{1}{2}} cups."), answer_of("He has 3 and gives 1, so 3 - 1 = 2 are left.")
    (Fraction(5, 2), Fraction(2, 1))
    >>> [answer_of(text) for text in ("18:30", "20 - 2", "#### 17 or 18", "none")]
    [None, None, None, None]
    """
    stated = _stated(response)
    return number_of(stated) if stated is not None else _last(_plain(response), alone=False)


def number_of(text: str) -> Fraction | None:
    """The one number of a text, such as what stands after the mark; None where it holds none, or several."""
    return _last(re.split("[=≈]", _plain(text))[-1], alone=True)


def _stated(response: str) -> str | None:
    """What the response says its answer is: the last of what is marked and boxed, None where nothing is."""
    box = max(response.rfind(name) for name in (r"\boxed", r"\fbox"))
    mark = response.rfind(MARK)
    if box < 0 and mark < 0:
        return None
    if mark > box:
        return next(iter(response[mark + len(MARK) :].strip().splitlines()), "")
    rest = response[box:].split("d" if response[box:].startswith(r"\boxed") else "x", 1)[1].lstrip()
    if not rest.startswith("{"):
        return rest.split("\n")[0]
    depth = 0
    for place, character in enumerate(rest):
        depth += {"{": 1, "}": -1}.get(character, 0)
        if depth == 0:
            return rest[1:place]
    return ""  # its end was cut


def _plain(text: str) -> str:
    """Without markup: LaTeX's fractions, spaces, signs and text, and fractions of one character, in plain letters."""
    text = text.replace("{,}", ",").replace(r"^{\circ}", "°").replace(r"^\circ", "°").replace("**", "")
    while (shorter := COMMANDS.sub(r"\1", text)) != text:
        text = shorter
    text = FRACTION.sub(lambda m: f" {m[1] or m[3] or ''}/{m[2] or m[4] or ''} ", text)
    text = re.sub(r"\\[$%#&_{}]", lambda m: m[0][1], text)
    text = re.sub(r"\\(?:[!,;: ()\[\]]|left|right|quad|degree)", " ", text).replace("~", " ").replace("\\\n", "\n")
    return "".join(f" {_ratio(c)} " if unicodedata.category(c) == "No" and "/" in _ratio(c) else c for c in text)


def _ratio(character: str) -> str:
    """A fraction of one character as `1/2`; for others, such as ², something without a stroke."""
    return str(Fraction(unicodedata.numeric(character, 0.0)).limit_denominator(1000))


def _last(text: str, *, alone: bool) -> Fraction | None:
    """The last number of a plain text; with `alone` it must be the only one."""
    found = list(QUANTITY.finditer(text))
    if not found or (alone and len(found) > 1):
        return None
    last = found[-1]
    between = text[found[-2].end() : last.start()] if len(found) > 1 else ""
    if len(found) > 1 and len(between) <= AROUND and OPERATOR.match(between):
        return None
    before, after = text[max(last.start() - AROUND, 0) : last.start()], text[last.end() : last.end() + AROUND]
    sign, hyphen = SIGN.search(before), HYPHEN.search(before)
    if not hyphen and (GLUED.search(before) or (sign and re.search(r"[0-9)]\s*\Z", before[: sign.start()]))):
        return None
    scale, value = _scale(after), _value(last)
    if scale is None or value is None:
        return None
    return (-value if sign and not hyphen else value) * 10**scale


def _scale(after: str) -> int | None:
    """The power of ten that what follows a number says; None where it makes an expression or a name of it."""
    word = re.match(r"[^\W\d_]+", after)
    if word is None:
        if re.match(r"[ \t]*(?:\^|\\|[*×·÷/+][ \t]*[\w\\(])|[_(\[]|[ \t]+[-−–][ \t]*[a-zA-Z\\]\b", after):
            return None
        word = re.match(r"[ \t]+(thousand|million|billion|trillion)\b", after)
        return SCALES[word[1]] if word else 0
    if word[0] in SCALES:
        return SCALES[word[0]]
    return 0 if len(word[0]) > 1 or word[0] in UNITS else None


def _value(match: re.Match[str]) -> Fraction | None:
    """The number of a match without its sign; None for one that is too long, and for a denominator of 0."""
    if len(match[0]) > LONGEST or abs(int(match["power"] or 0)) > LONGEST:
        return None
    if match["whole"]:
        top, bottom = int(match["top"]), int(match["bottom"])
        return int(match["whole"]) + Fraction(top, bottom) if bottom else None
    over = Fraction((match["over"] or "1").replace(",", ""))
    number = Fraction(match["number"].replace(",", "")) * Fraction(10) ** int(match["power"] or 0)
    return number / over if over else None
