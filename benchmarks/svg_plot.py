"""Line plots as SVG: a few curves, axes with numbers, a legend. It knows nothing of what it shows."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape

Points = Sequence[tuple[float, float]]

WIDTH, HEIGHT = 560, 360
LEFT, RIGHT, TOP, BOTTOM = 64, 16, 34, 46
COLOURS = ("#0b6e99", "#d9730d", "#0f7b6c", "#ad1a72", "#6940a5", "#9f6b53")


@dataclass(frozen=True)
class Axis:
    """One direction of a plot."""

    label: str
    is_log: bool = False

    def place(self, value: float, values: Sequence[float]) -> float:
        """0 to 1 within the range of all values."""
        low, high = self._on_scale(min(values)), self._on_scale(max(values))
        return 0.5 if high == low else (self._on_scale(value) - low) / (high - low)

    def ticks(self, values: Sequence[float]) -> list[float]:
        """Round numbers inside the range."""
        low, high = min(values), max(values)
        if self.is_log:
            exponents = range(math.floor(math.log10(low)) - 1, math.ceil(math.log10(high)) + 1)
            return [m * 10.0**e for e in exponents for m in (1, 2, 5) if low <= m * 10.0**e <= high]
        step = _round_step((high - low) / 5)
        return [number * step for number in range(math.ceil(low / step), math.floor(high / step) + 1)]

    def _on_scale(self, value: float) -> float:
        return math.log10(value) if self.is_log else value


def _round_step(rough: float) -> float:
    if rough <= 0:
        return 1.0
    power = 10.0 ** math.floor(math.log10(rough))
    return next(factor * power for factor in (1, 2, 5, 10) if factor * power >= rough)


def line_plot(title: str, x_axis: Axis, y_axis: Axis, curves: Mapping[str, Points]) -> str:
    """The text of an SVG file.

    Args:
        curves: points of each, by the name in the legend.
    """
    xs = [x for points in curves.values() for x, _ in points]
    ys = [y for points in curves.values() for _, y in points]

    def at(x: float, y: float) -> tuple[float, float]:
        across, up = x_axis.place(x, xs), y_axis.place(y, ys)
        return LEFT + across * (WIDTH - LEFT - RIGHT), HEIGHT - BOTTOM - up * (HEIGHT - TOP - BOTTOM)

    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" font-family="sans-serif" '
        'font-size="11">',
        f'<rect width="{WIDTH}" height="{HEIGHT}" fill="white"/>',
        _text(WIDTH / 2, 18, title, "middle", 'font-size="13"'),
        _text(WIDTH / 2, HEIGHT - 8, x_axis.label, "middle"),
        _text(14, HEIGHT / 2, y_axis.label, "middle", f'transform="rotate(-90 14 {HEIGHT / 2:g})"'),
    ]
    for tick in x_axis.ticks(xs):
        x, _ = at(tick, min(ys))
        parts.append(_line(x, TOP, x, HEIGHT - BOTTOM))
        parts.append(_text(x, HEIGHT - BOTTOM + 15, f"{tick:g}", "middle"))
    for tick in y_axis.ticks(ys):
        _, y = at(min(xs), tick)
        parts.append(_line(LEFT, y, WIDTH - RIGHT, y))
        parts.append(_text(LEFT - 6, y + 4, f"{tick:g}", "end"))
    for number, (name, points) in enumerate(curves.items()):
        parts += _curve(name, [at(*point) for point in points], number)
    return "\n".join([*parts, "</svg>", ""])


def _curve(name: str, places: Sequence[tuple[float, float]], number: int) -> list[str]:
    colour = COLOURS[number % len(COLOURS)]
    path = " ".join(f"{x:.1f},{y:.1f}" for x, y in places)
    dots = [f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3" fill="{colour}"/>' for x, y in places]
    legend = _text(LEFT + 10, TOP + 14 + 15 * number, name, "start", f'fill="{colour}"')
    return [f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="2"/>', *dots, legend]


def _line(x1: float, y1: float, x2: float, y2: float) -> str:
    return f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" stroke="#e0e0e0"/>'


def _text(x: float, y: float, words: str, anchor: str, more: str = "") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" {more}>{escape(words)}</text>'
