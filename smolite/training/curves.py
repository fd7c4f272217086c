"""A loss curve as an SVG picture: no plotting library, opens in any browser and shows in a notebook."""

from collections.abc import Mapping, Sequence

WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 720, 400, 64, 160, 40, 48
COLOURS = ("#2563eb", "#dc2626", "#059669", "#9333ea")

Points = Sequence[tuple[float, float]]


def draw_curves(curves: Mapping[str, Points], *, title: str, x_label: str, y_label: str) -> str:
    """Draws named curves into one picture, each with a dot at its last point.

    Args:
        curves: name → at least one point (x, y), in the order of x.
        title, x_label, y_label: texts of the picture.

    Returns:
        The SVG document.
    """
    points = [point for curve in curves.values() for point in curve]
    x_range = _padded(min(x for x, _ in points), max(x for x, _ in points), 0.0)
    y_range = _padded(min(y for _, y in points), max(y for _, y in points), 0.05)
    body = [_text(LEFT, TOP - 16, title, size=16), *_grid(x_range, y_range)]
    body.append(_text((LEFT + WIDTH - RIGHT) / 2, HEIGHT - 8, x_label, anchor="middle"))
    body.append(_text(8, TOP - 16 + 12, y_label, size=11))
    for number, (name, curve) in enumerate(curves.items()):
        colour = COLOURS[number % len(COLOURS)]
        dots = [_dot(point, x_range, y_range) for point in curve]
        body.append(_line(dots, colour))
        across, down = dots[-1]
        body.append(f'<circle cx="{across:.1f}" cy="{down:.1f}" r="3" fill="{colour}"/>')
        last = f"{name} {curve[-1][1]:.3f}"
        body.append(_text(WIDTH - RIGHT + 12, TOP + 16 + 20 * number, last, colour=colour))
    frame = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" width="{WIDTH}" height="{HEIGHT}"'
    return "\n".join(
        [
            f'{frame} font-family="sans-serif">',
            '<rect width="100%" height="100%" fill="white"/>',
            *body,
            "</svg>",
        ]
    )


def _padded(low: float, high: float, share: float) -> tuple[float, float]:
    margin = (high - low) * share or (0.5 if low == high else 0.0)
    return low - margin, high + margin


def _dot(point: tuple[float, float], x_range: tuple[float, float], y_range: tuple[float, float]) -> tuple[float, float]:
    across = (point[0] - x_range[0]) / (x_range[1] - x_range[0])
    up = (point[1] - y_range[0]) / (y_range[1] - y_range[0])
    return LEFT + across * (WIDTH - LEFT - RIGHT), HEIGHT - BOTTOM - up * (HEIGHT - TOP - BOTTOM)


def _grid(x_range: tuple[float, float], y_range: tuple[float, float]) -> list[str]:
    lines = []
    for step in range(6):
        x = x_range[0] + (x_range[1] - x_range[0]) * step / 5
        y = y_range[0] + (y_range[1] - y_range[0]) * step / 5
        left, height = _dot((x_range[0], y), x_range, y_range)
        across, bottom = _dot((x, y_range[0]), x_range, y_range)
        lines.append(_line([(left, height), (WIDTH - RIGHT, height)], "#e5e7eb", width=1))
        lines.append(_text(left - 8, height + 4, f"{y:.3g}", anchor="end", size=11))
        lines.append(_text(across, bottom + 18, f"{x:.3g}", anchor="middle", size=11))
    return lines


def _line(points: Points, colour: str, width: float = 2) -> str:
    path = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
    return f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="{width}"/>'


def _text(x: float, y: float, text: str, *, anchor: str = "start", size: int = 13, colour: str = "#111827") -> str:
    safe = text.replace("&", "&amp;").replace("<", "&lt;")
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" font-size="{size}" fill="{colour}">{safe}</text>'
