"""VA-RED² for any PyTorch video network: compute only the frames and channels that a clip needs."""

from vared2_fx import zoo
from vared2_fx.calibration import Calibration, Redundancy, calibrate, redundancy
from vared2_fx.checkpoint import load, load_weights, save
from vared2_fx.config import ConvertConfig, FinetuneConfig
from vared2_fx.convert import convert, scan
from vared2_fx.deploy import BenchResult, Deployed, bench, deploy, load_deployed
from vared2_fx.layers import Choice, Decision
from vared2_fx.passes.rewrite import with_decisions
from vared2_fx.policy.autotune import Autotuned, ChoiceTime, autotune
from vared2_fx.policy.fix import full, policy, specialize, unload
from vared2_fx.report import Comparison, CompressionReport, RunLog, compare, merge, read_run, report, scan_page
from vared2_fx.routes import (
    Routed,
    RouteQueue,
    Routes,
    deploy_routed,
    export_bundle,
    find_routes,
    finetune_routes,
    train_router,
)
from vared2_fx.train import (
    Evaluation,
    FinetuneResult,
    Oracle,
    collapse_alarms,
    distillation_loss,
    efficiency_loss,
    evaluate,
    finetune,
    fit_gates,
    oracle,
    recalibrate_norms,
)

__version__ = "0.1.0"

__all__ = [
    "Autotuned",
    "BenchResult",
    "Calibration",
    "Choice",
    "ChoiceTime",
    "Comparison",
    "CompressionReport",
    "ConvertConfig",
    "Decision",
    "Deployed",
    "Evaluation",
    "FinetuneConfig",
    "FinetuneResult",
    "Oracle",
    "Redundancy",
    "RouteQueue",
    "Routed",
    "Routes",
    "RunLog",
    "autotune",
    "bench",
    "calibrate",
    "collapse_alarms",
    "compare",
    "convert",
    "deploy",
    "deploy_routed",
    "distillation_loss",
    "efficiency_loss",
    "evaluate",
    "export_bundle",
    "find_routes",
    "finetune",
    "finetune_routes",
    "fit_gates",
    "full",
    "load",
    "load_deployed",
    "load_weights",
    "merge",
    "oracle",
    "policy",
    "read_run",
    "recalibrate_norms",
    "redundancy",
    "report",
    "save",
    "scan",
    "scan_page",
    "specialize",
    "train_router",
    "unload",
    "with_decisions",
    "zoo",
]
