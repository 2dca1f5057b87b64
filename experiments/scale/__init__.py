"""Prediction on many machines: what it costs, and what it survives."""
