"""Draws a sequence of the operator API (``/explain/requests``): as text for a terminal, as SVG for a page.

Owns nothing but looks; rows come in order, with milliseconds from the first. Rows have equal heights (the times stand
beside them), so that what takes a microsecond can be read beside what takes a minute.
"""

from typing import Any
from xml.sax.saxutils import escape

_COLUMN = 13
_MARKS = {"failed": "✗", "undo": "↶"}


def text(drawing: dict[str, Any]) -> list[str]:
    """Lines: milliseconds, lifelines with arrows, what happened."""
    names = [_short(line["name"], _COLUMN + 3) for line in drawing["lifelines"]]
    at = [4 + number * _COLUMN for number in range(len(names))]
    width = at[-1] + 4
    head = [" "] * (width + _COLUMN)
    for position, name in zip(at, names, strict=True):
        begin = max(position - len(name) // 2, 0)
        head[begin : begin + len(name)] = name
    lines = [f"{'ms':>9}  {''.join(head).rstrip()}"]
    previous = None
    for row in drawing["rows"]:
        now = f"{row['at_ms']:.1f}"
        shown = now if now != previous else ""
        previous = now
        mark = _MARKS.get(row["kind"], " ")
        lines.append(f"{shown:>9}  {_lifelines(drawing, row, at, width)} {mark} {row['text']}".rstrip())
    return lines


def _lifelines(drawing: dict[str, Any], row: dict[str, Any], at: list[int], width: int) -> str:
    cells = [" "] * width
    for number, position in enumerate(at):
        cells[position] = "┃" if _works(drawing, number, row["at_ms"]) else "│"
    source, target = row["from"], row["to"]
    if source is None or target is None:  # to or from the client, left of all
        line = at[target if source is None else source]
        cells[0:line] = "─" * line
        cells[line - 1 if source is None else 0] = "▶" if source is None else "◀"
    elif source == target:
        cells[at[source] + 1] = "●"
    else:
        low, high = sorted((at[source], at[target]))
        for column in range(low + 1, high):
            cells[column] = "┼" if column in at else "─"
        cells[at[target] + (-1 if source < target else 1)] = "▶" if source < target else "◀"
    return "".join(cells)


def _works(drawing: dict[str, Any], lifeline: int, at: float) -> bool:
    return any(one["lifeline"] == lifeline and one["from_ms"] <= at <= one["to_ms"] for one in drawing["active"])


def _short(name: str, width: int) -> str:
    return name if len(name) <= width else name[: width - 1] + "…"


# -- SVG ------------------------------------------------------------------------------------------------------------

_GAP, _LEFT, _TOP, _STEP = 190, 110, 96, 27
_LETTER = 6.4  # width of one at the labels' size
_COLOURS = {
    "request": "#1a4f8b", "answer": "#1a4f8b", "transaction": "#6b4a9e", "step": "#6b4a9e", "message": "#2f6f4f",
    "failed": "#b3261e", "undo": "#a15c00",
}  # fmt: skip
_FONT = "font-family='DejaVu Sans, Verdana, sans-serif'"


def svg(drawing: dict[str, Any], title: str) -> str:
    rows, lines = drawing["rows"], drawing["lifelines"]
    x = [_LEFT + 70 + number * _GAP for number in range(len(lines))]
    y = [_TOP + 34 + number * _STEP for number in range(len(rows))]
    bottom = (y[-1] if y else _TOP) + 26
    right = max((_label_at(row, x) + len(row["text"]) * _LETTER for row in rows), default=0)
    width, height = int(max(x[-1] + 110, right + 20)), bottom + 40
    out = [
        f"<svg xmlns='http://www.w3.org/2000/svg' width='{width}' height='{height}' "
        f"viewBox='0 0 {width} {height}' {_FONT}>",
        f"<rect width='{width}' height='{height}' fill='#ffffff'/>",
        f"<text x='20' y='30' font-size='15' font-weight='bold' fill='#1b1b1b'>{escape(title)}</text>",
        f"<text x='20' y='49' font-size='11' fill='#666666'>{escape(drawing['request_id'])}</text>",
    ]
    for place, line in zip(x, lines, strict=True):
        out.append(
            f"<rect x='{place - 78}' y='{_TOP - 34}' width='156' height='36' rx='5' fill='#eef2f7' stroke='#8a97a8'/>"
            f"<text x='{place}' y='{_TOP - 19}' font-size='12' font-weight='bold' text-anchor='middle' "
            f"fill='#1b1b1b'>{escape(_short(line['name'], 22))}</text>"
            f"<text x='{place}' y='{_TOP - 6}' font-size='9' text-anchor='middle' fill='#666666'>"
            f"{escape(_short(line['process'], 28))}</text>"
            f"<line x1='{place}' y1='{_TOP + 2}' x2='{place}' y2='{bottom}' stroke='#b8c1cc' stroke-width='1.2'/>"
        )
    out += [_bar(one, rows, x, y) for one in drawing["active"]]
    previous = None
    for height_, row in zip(y, rows, strict=True):
        now = f"{row['at_ms']:.1f} ms"
        if now != previous:
            out.append(
                f"<text x='{_LEFT - 22}' y='{height_ + 3}' font-size='10' text-anchor='end' fill='#666666'>{now}</text>"
            )
        previous = now
        out.append(_arrow(row, x, height_))
    out.append("</svg>")
    return "\n".join(out) + "\n"


def _label_at(row: dict[str, Any], x: list[int]) -> int:
    ends = [_LEFT if end is None else x[end] for end in (row["from"], row["to"])]
    return min(ends) + (11 if row["from"] is not None and row["from"] == row["to"] else 10)


def _bar(active: dict[str, Any], rows: list[dict[str, Any]], x: list[int], y: list[int]) -> str:
    """Where a lifeline works: from the first row at its beginning to the last at its end."""
    inside = [h for h, row in zip(y, rows, strict=True) if active["from_ms"] <= row["at_ms"] <= active["to_ms"]]
    if not inside:
        return ""
    place = x[active["lifeline"]]
    begin, end = inside[0] - 6, inside[-1] + 6
    return f"<rect x='{place - 4}' y='{begin}' width='8' height='{end - begin}' fill='#cfdcec' stroke='#8a97a8'/>"


def _arrow(row: dict[str, Any], x: list[int], y: int) -> str:
    colour = _COLOURS.get(row["kind"], "#333333")
    source, target = row["from"], row["to"]
    label = escape(row["text"])
    halo = "paint-order='stroke' stroke='#ffffff' stroke-width='3.5' stroke-linejoin='round'"
    if source is not None and source == target:
        place = x[source]
        return (
            f"<circle cx='{place}' cy='{y}' r='4' fill='{colour}'/>"
            f"<text x='{_label_at(row, x)}' y='{y + 3}' font-size='10.5' fill='{colour}' {halo}>{label}</text>"
        )
    begin = _LEFT if source is None else x[source]
    end = _LEFT if target is None else x[target]
    back = 7 if end > begin else -7
    head = f"{end},{y} {end - back},{y - 3.5} {end - back},{y + 3.5}"
    return (
        f"<line x1='{begin}' y1='{y}' x2='{end - back}' y2='{y}' stroke='{colour}' stroke-width='1.4'/>"
        f"<polygon points='{head}' fill='{colour}'/>"
        f"<text x='{_label_at(row, x)}' y='{y - 5}' font-size='10.5' fill='{colour}' {halo}>{label}</text>"
    )
