"""Diffusion solvers as tables of coefficients: any mix of them advances in one vectorised update; knows numpy only."""

from nereid.diffusion.solvers.choices import require_spacing
from nereid.diffusion.solvers.names import SCHEDULERS, SchedulerName, default_scheduler
from nereid.diffusion.solvers.schedule import SchedulerConfig, noise_levels
from nereid.diffusion.solvers.scheduler_file import PredictionType, ScheduleError, Spacing
from nereid.diffusion.solvers.table import SolverTable, build_table
from nereid.diffusion.solvers.update import LATEST_CLEAN, SolverState, advance, needs_noise, predict_clean

__all__ = [
    "LATEST_CLEAN",
    "SCHEDULERS",
    "PredictionType",
    "ScheduleError",
    "SchedulerConfig",
    "SchedulerName",
    "SolverState",
    "SolverTable",
    "Spacing",
    "advance",
    "build_table",
    "default_scheduler",
    "needs_noise",
    "noise_levels",
    "predict_clean",
    "require_spacing",
]
