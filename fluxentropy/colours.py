"""A colour scale for numbers: even steps in lightness, for light and dark pages, readable letters on every step."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

# Where the scale passes, in OKLCH (lightness, chroma, hue): from the brightness of the page to its contrary. Lightness
# alone tells the steps apart, so eyes of every colour vision, and grey prints, keep them in order.
LIGHT_STOPS = ((0.97, 0.02, 105), (0.87, 0.12, 110), (0.72, 0.13, 155), (0.54, 0.11, 230), (0.32, 0.13, 290))
DARK_STOPS = ((0.26, 0.05, 290), (0.42, 0.11, 275), (0.57, 0.10, 230), (0.74, 0.14, 155), (0.93, 0.15, 108))


def scale_css(levels: int) -> str:
    """Variables --q0, --i0, …: the steps of the scale, and letters of black or white on each; on dark pages others."""
    light, dark = (_variables(palette(stops, levels)) for stops in (LIGHT_STOPS, DARK_STOPS))
    return f":root{{{light}}}\n@media screen and (prefers-color-scheme:dark){{:root{{{dark}}}}}\n"


def _variables(colours: np.ndarray) -> str:
    letters = np.where(luminance(colours) > 0.179, "#000", "#fff").tolist()  # at 0.179 both have a contrast of 4.58
    steps = np.round(colours * 255).astype(np.uint8).tolist()
    return "".join(
        f"--q{level}:#{bytes(step).hex()};--i{level}:{letter};"
        for level, (step, letter) in enumerate(zip(steps, letters, strict=True))
    )


def palette(stops: Sequence[tuple[float, float, float]], levels: int) -> np.ndarray:
    """Colours along OKLCH `stops` of rising or falling lightness, in even steps of it. -> (levels, 3) sRGB in 0..1"""
    lightness, chroma, hue = np.array(sorted(stops)).T
    L = np.linspace(stops[0][0], stops[-1][0], levels)
    a = np.interp(L, lightness, chroma * np.cos(np.radians(hue)))
    b = np.interp(L, lightness, chroma * np.sin(np.radians(hue)))
    return oklab_to_srgb(np.stack([L, a, b], axis=1))


def oklab_to_srgb(lab: np.ndarray) -> np.ndarray:
    """Colours in OKLab (https://bottosson.github.io/posts/oklab) as sRGB, clipped to 0..1. (n, 3) -> (n, 3)"""
    roots = lab @ np.array(
        [[1, 1, 1], [0.3963377774, -0.1055613458, -0.0894841775], [0.2158037573, -0.0638541728, -1.2914855480]]
    )
    linear = roots**3 @ np.array(
        [
            [4.0767416621, -1.2684380046, -0.0041960863],
            [-3.3077115913, 2.6097574011, -0.7034186147],
            [0.2309699292, -0.3413193965, 1.7076147010],
        ]
    )
    linear = np.clip(linear, 0, 1)
    return np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)


def luminance(srgb: np.ndarray) -> np.ndarray:
    """Relative luminance, from 0 for black to 1 for white, as WCAG 2 defines it. (n, 3) -> (n,)"""
    linear = np.where(srgb <= 0.04045, srgb / 12.92, ((srgb + 0.055) / 1.055) ** 2.4)
    return linear @ np.array([0.2126, 0.7152, 0.0722])
