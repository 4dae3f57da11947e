r"""Patterns on module paths: the same language wherever layers are named.

`blocks.3` a module, and all that is inside it; `blocks.*.conv` a shell pattern, `*` reaching over dots;
`re:blocks\.[34]\..*` a regular expression that has to match the whole path.
"""

import difflib
import re
from collections.abc import Iterable
from fnmatch import fnmatchcase

from vared2_fx.errors import ConvertError

REGEX = "re:"


def check_pattern(where: str, pattern: object) -> None:
    """Refuse what can be no pattern.

    Raises:
        ConvertError: it is no text, empty, or a regular expression that does not compile.
    """
    if not isinstance(pattern, str) or not pattern:
        raise ConvertError(f"{where}: {pattern!r} is no pattern; write a path such as 'blocks.3' or 'blocks.*.conv'.")
    if pattern.startswith(REGEX):
        try:
            re.compile(pattern.removeprefix(REGEX))
        except re.error as exc:
            raise ConvertError(f"{where}: {pattern!r} is no regular expression ({exc}).") from exc


def matching(pattern: str, paths: Iterable[str]) -> list[str]:
    """Those of `paths` that `pattern` names."""
    if pattern.startswith(REGEX):
        expression = re.compile(pattern.removeprefix(REGEX))
        return [path for path in paths if expression.fullmatch(path)]
    return [path for path in paths if fnmatchcase(path, pattern) or path.startswith(f"{pattern}.")]


def no_match(where: str, pattern: str, paths: Iterable[str], things: str) -> ConvertError:
    """The error for a pattern that names none of `paths`, which are `things`; it shows the nearest."""
    known = list(paths)
    inside = {path.rsplit(".", depth)[0] for path in known for depth in range(1, path.count(".") + 1)}
    text = pattern.removeprefix(REGEX).replace("\\", "")
    near = difflib.get_close_matches(text, [*known, *sorted(inside - set(known))], n=3, cutoff=0.4)
    hint = f"; near it are {', '.join(near)}" if near else ""
    return ConvertError(f"{where}: {pattern!r} matches none of the {len(known)} {things}{hint}.")
