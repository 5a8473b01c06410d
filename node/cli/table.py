"""Rows in columns, as wide as their widest cell; readable in a pipe too."""

from collections.abc import Sequence

from .output import Output

_GAP = "  "


def show_table(output: Output, heads: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    for line in table_lines(heads, rows):
        output.line(line)


def table_lines(heads: Sequence[str], rows: Sequence[Sequence[object]]) -> list[str]:
    """Columns of numbers stand on the right, text on the left."""
    cells = [list(heads), *([_cell(value) for value in row] for row in rows)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    columns = list(zip(*rows, strict=True)) or [()] * len(heads)
    numeric = [all(value is None or isinstance(value, int | float) for value in column) for column in columns]
    lines = []
    for line in cells:
        shape = zip(line, widths, numeric, strict=True)
        lines.append(_GAP.join(cell.rjust(w) if number else cell.ljust(w) for cell, w, number in shape).rstrip())
    return lines


def _cell(value: object) -> str:
    match value:
        case None:
            return "-"
        case float():
            return f"{value:.1f}"
        case _:
            return str(value)
