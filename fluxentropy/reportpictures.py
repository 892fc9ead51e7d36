"""Pictures that other commands drew -> smaller ones, as data: URIs, as long as the page has room for them."""

from __future__ import annotations

import base64
import io
from pathlib import Path

from fluxentropy.errors import RunError
from fluxentropy.markup import Markup, el
from fluxentropy.reportruns import LeftOut

WIDTH = 1500  # pixels, at most
LARGEST = 30_000_000  # pixels of a file that is read at all
TONES = 96  # colours that are kept
WIDE = 1.5  # width over height from which a picture is not made narrower than can be read


class Pictures:
    """Hands out pictures until `room` bytes of the page are used, and remembers those there was no room for."""

    def __init__(self, room: int) -> None:
        self.room = room
        self.left_out: list[LeftOut] = []

    def show(self, path: Path, alt: str, caption: str = "") -> Markup:
        """The picture as a figure; a line where the page is full. RunError where it cannot be read."""
        picture, (width, height) = shrunk(path) if self.room else (b"", (0, 0))
        data = base64.b64encode(picture).decode()
        if not self.room or len(data) > self.room:
            self.left_out.append(LeftOut(name=f"{path.parent.name}/{path.name}", why="the page is full"))
            return el("p", f"The picture {path.name} is left out: the page is full.", class_="note")
        self.room -= len(data)
        image = el("img", src=f"data:image/png;base64,{data}", alt=alt, width=width, height=height)
        box = el("div", image, class_="picture" + " broad" * (width > WIDE * height), tabindex=0, role="group")
        return el("figure", box, el("figcaption", caption or alt))


def shrunk(path: Path) -> tuple[bytes, tuple[int, int]]:
    """The picture on white, at most WIDTH pixels wide and in TONES colours, as the bytes of a PNG; and its size."""
    from PIL import Image

    try:
        with Image.open(path, formats=["PNG"]) as found:
            if found.width * found.height > LARGEST:
                raise ValueError(f"{found.width} x {found.height} pixels are too many")
            picture = Image.new("RGBA", found.size, "white")
            picture.alpha_composite(found.convert("RGBA"))
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise RunError(f"{path} is no picture that can be read ({error}): make it again, or remove it") from error
    flat = picture.convert("RGB")
    if flat.width > WIDTH:
        flat = flat.resize((WIDTH, round(flat.height * WIDTH / flat.width)), Image.Resampling.LANCZOS)
    file = io.BytesIO()
    flat.quantize(TONES, dither=Image.Dither.NONE).save(file, "PNG", optimize=True)
    return file.getvalue(), flat.size
