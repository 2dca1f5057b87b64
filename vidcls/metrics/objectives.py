"""The metrics of the val split that a sweep can rank and search by. Light: imported before torch."""

LOWER_IS_BETTER = {"accuracy": False, "macro_f1": False, "auroc": False, "loss": True, "calibration_error": True}
