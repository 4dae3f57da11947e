"""What a converted network computes on data: numbers first, text apart."""

from vared2_fx.report.document import CompressionReport
from vared2_fx.report.make import report
from vared2_fx.report.merge import merge

__all__ = ["CompressionReport", "merge", "report"]
