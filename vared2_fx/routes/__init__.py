"""One decision per clip: the few joint choices that gates really take, each a static network."""

from vared2_fx.routes.find import find_routes
from vared2_fx.routes.found import Assignment, Route, Routes

__all__ = ["Assignment", "Route", "Routes", "find_routes"]
