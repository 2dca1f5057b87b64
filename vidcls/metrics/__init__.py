"""Metrics: pure functions from arrays to plain values."""
