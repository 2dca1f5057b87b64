"""vidcls trains and uses classifiers of short videos.

The names below are the public API; everything else may move. Each is imported when it is first used, so that
``import vidcls`` costs nothing:

    >>> from vidcls import load_run
    >>> load_run("runs/train/my_run").predict("clip.mp4")  # doctest: +SKIP
    {'adult': 0.01, 'harmful': 0.02, 'safe': 0.97}
"""

import importlib
from typing import Any

_MODULES = {
    # Use a trained run: its model, its predictions.
    "vidcls.prediction.loading": ("load_run",),
    "vidcls.prediction.predictor": ("Predictor",),
    "vidcls.prediction.run": ("LoadedRun",),
    # Videos: a source becomes splits, stored frames and loaders.
    "vidcls.data.datamodule": ("VideoDataModule",),
    "vidcls.data.options": ("DataOptions",),
    "vidcls.data.preparation": ("prepare_videos",),
    "vidcls.data.demo": ("draw_demo",),
    "vidcls.data.splits": ("assign_splits", "find_leaks", "group_videos"),
    # Train: from the options of train.py to a trained model, or with a Lightning trainer of your own.
    "vidcls.cli": ("compose_config",),
    "vidcls.models.classifiers": ("build_classifier",),
    "vidcls.training.module": ("VideoClassifier",),
    "vidcls.training.loop": ("build_datamodule", "build_module", "fit", "silence_lightning", "test"),
    "vidcls.training.callbacks": ("History", "find_callback"),
    "vidcls.training.records": ("worst_errors_figure",),
    # Measure: arrays in, numbers out.
    "vidcls.metrics.predictions": ("Predictions",),
    "vidcls.metrics.classification": ("summarise",),
    "vidcls.metrics.bootstrap": ("bootstrap_intervals",),
    "vidcls.metrics.calibration": ("calibrate", "reliability"),
    # Decide: probabilities become allow, review or block.
    "vidcls.moderation.policy": ("Policy", "decide", "fit_policy", "policy_report"),
    # Compare the jobs of a sweep.
    "vidcls.sweeps.tables": ("effects", "margin", "margin_noise", "rank", "read_sweep", "seed_spread"),
    # Draw; each gives a matplotlib figure, sweep_figures several by name.
    "vidcls.plots.run_plots": ("confusion_figure", "learning_curves_figure", "reliability_figure", "strips_figure"),
    "vidcls.sweeps.sweep_report": ("sweep_figures",),
    # What every function raises for a mistake that its user can fix.
    "vidcls.errors": ("UserError",),
}
_HOMES = {name: module for module, names in _MODULES.items() for name in names}

__all__ = sorted(_HOMES)


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'vidcls' has no attribute {name!r}")
    value = getattr(importlib.import_module(_HOMES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return __all__
