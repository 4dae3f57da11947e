"""Lists of videos in files, in the forms that data sets come with: `path,label`, `path label`, Kinetics' own."""

import csv
from collections.abc import Sequence
from pathlib import Path

from vared2_fx.errors import DataError

_HEADER_PATH = ("path", "video", "file", "filename")
_HEADER_LABEL = ("label", "class")
_KINETICS = ("youtube_id", "time_start", "time_end")


def labelled_rows(path: Path) -> list[tuple[int, str, str]]:
    """Give (line number, path, label) of each row.

    Raises:
        DataError: the file is missing or not text, has no rows, or a row is malformed; naming the line.
    """
    lines = _lines(path, spaced="," not in read_text(path, what="the list of videos"))
    if lines and _is_kinetics(lines[0][1]):
        header = [cell.lower() for cell in lines[0][1]]
        if "label" not in header:
            raise DataError(f"`{path}` has no column `label`, as Kinetics' test split has none. Take another split.")
        place = header.index("label")
        rows = [(line, _kinetics_file(path, header, line, cells), cells[place]) for line, cells in lines[1:]]
    else:
        rows = [(line, *_path_and_label(path, line, cells)) for line, cells in lines]
        if rows and rows[0][1].lower() in _HEADER_PATH and rows[0][2].lower() in _HEADER_LABEL:
            del rows[0]
    if not rows:
        raise DataError(f"`{path}` lists no videos. Write one row `path,label` per video.")
    return rows


def listed_files(path: Path) -> list[str]:
    """Give the path in each row, whatever stands behind it.

    Raises:
        DataError: as above.
    """
    lines = _lines(path, spaced=False)
    if lines and _is_kinetics(lines[0][1]):
        header = [cell.lower() for cell in lines[0][1]]
        files = [_kinetics_file(path, header, line, cells) for line, cells in lines[1:]]
    else:
        header_words = {*_HEADER_PATH, *_HEADER_LABEL}
        files = [cells[0] for _, cells in lines if not set(cells[0].lower().split()) <= header_words]
        halves = [file.rsplit(maxsplit=1) for file in files]
        if all(len(half) == 2 and half[1].isdecimal() for half in halves):  # `path label`, unless names have spaces
            files = [half[0] for half in halves]
    if not files:
        raise DataError(f"`{path}` lists no videos. Write one path per line.")
    return files


def read_text(path: Path, *, what: str) -> str:
    """The text in a file.

    Raises:
        DataError: it cannot be read, or is none; the text begins with `what`.
    """
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(f"{what}: `{path}` is not UTF-8 text. Is it the right file?") from error
    except OSError as error:
        raise DataError(f"{what}: `{path}` cannot be read ({error.strerror}). Check the path.") from error


def _lines(path: Path, *, spaced: bool) -> list[tuple[int, list[str]]]:
    """(line number, cells) of all that is not empty; `spaced`: two cells with a space between."""
    text = read_text(path, what="the list of videos").splitlines()
    reader = csv.reader(text)
    found = []
    try:
        for row in reader:
            cells = [cell.strip() for cell in row]
            if spaced and len(cells) == 1:
                cells = cells[0].rsplit(maxsplit=1)
            if any(cells):
                found.append((reader.line_num, cells))
    except csv.Error as error:
        raise DataError(f"`{path}`, line {reader.line_num}: not CSV ({error}). Expected `path,label`.") from error
    return found


def _path_and_label(path: Path, line: int, cells: Sequence[str]) -> tuple[str, str]:
    if len(cells) != 2 or not all(cells):
        raise DataError(
            f"`{path}`, line {line}: expected `path,label`, found {len(cells)} columns "
            f"({', '.join(cells)[:80]!r}). Put a path that has a comma in it in double quotes."
        )
    return cells[0], cells[1]


def _is_kinetics(cells: Sequence[str]) -> bool:
    return set(_KINETICS) <= {cell.lower() for cell in cells}


def _kinetics_file(path: Path, header: Sequence[str], line: int, cells: Sequence[str]) -> str:
    """The file of a row, by either name that Kinetics' videos go by; the longer one where there is none."""
    named = dict(zip(header, cells, strict=False))
    name, first, last = (named.get(column, "") for column in _KINETICS)
    if len(cells) != len(header) or not name or not (first.isdecimal() and last.isdecimal()):
        raise DataError(
            f"`{path}`, line {line}: expected `{','.join(header)}` with times in whole seconds, found "
            f"{', '.join(cells)[:80]!r}."
        )
    short, long = f"{name}.mp4", f"{name}_{int(first):06d}_{int(last):06d}.mp4"
    return short if not (path.parent / long).exists() and (path.parent / short).exists() else long
