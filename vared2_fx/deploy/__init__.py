"""Static networks in engines: made, called, saved, loaded."""

from vared2_fx.deploy.bench import bench
from vared2_fx.deploy.deployed import Deployed
from vared2_fx.deploy.files import load_deployed
from vared2_fx.deploy.make import deploy
from vared2_fx.deploy.parity import Parity
from vared2_fx.deploy.speed import BenchResult

__all__ = ["BenchResult", "Deployed", "Parity", "bench", "deploy", "load_deployed"]
