"""What a converted network computes on data: numbers first, text apart."""

from vared2_fx.report.compare import Comparison, compare
from vared2_fx.report.document import CompressionReport
from vared2_fx.report.make import report
from vared2_fx.report.merge import merge
from vared2_fx.report.run_log import RunLog, read_run
from vared2_fx.report.scan_page import scan_page

__all__ = ["Comparison", "CompressionReport", "RunLog", "compare", "merge", "read_run", "report", "scan_page"]
