"""What a converted network computes on data: numbers first, text apart."""

from vared2_fx.report.make import report
from vared2_fx.report.numbers import CompressionReport

__all__ = ["CompressionReport", "report"]
