"""Which metrics of the val split a sweep can rank and search by. Light: imported before torch."""

LOWER_IS_BETTER = {"accuracy": False, "macro_f1": False, "auroc": False, "loss": True, "calibration_error": True}
"""The val figures that can be an objective, and whether less of it is better."""
