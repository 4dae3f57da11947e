"""One decision per clip: the few joint choices that gates really take, each a static network, and a router."""

from vared2_fx.routes.bundle import export_bundle
from vared2_fx.routes.curve import Point
from vared2_fx.routes.deployed import DeployedRoutes, deploy_routed
from vared2_fx.routes.find import find_routes, measure_routes
from vared2_fx.routes.found import Assignment, Route, Routes
from vared2_fx.routes.joint import finetune_routes
from vared2_fx.routes.queue import Overloaded, QueueCounts, RouteQueue, Served
from vared2_fx.routes.routed import Routed, RoutedAnswer, RoutedEvaluation
from vared2_fx.routes.router import Router
from vared2_fx.routes.train import train_router

__all__ = [
    "Assignment",
    "DeployedRoutes",
    "Overloaded",
    "Point",
    "QueueCounts",
    "Route",
    "RouteQueue",
    "Routed",
    "RoutedAnswer",
    "RoutedEvaluation",
    "Router",
    "Routes",
    "Served",
    "deploy_routed",
    "export_bundle",
    "find_routes",
    "finetune_routes",
    "measure_routes",
    "train_router",
]
