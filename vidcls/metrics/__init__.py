"""Metrics: pure functions from arrays to plain values."""

# The val metrics that a sweep can rank and search by; here, as this is imported before torch.
LOWER_IS_BETTER = {"accuracy": False, "macro_f1": False, "auroc": False, "loss": True, "calibration_error": True}
