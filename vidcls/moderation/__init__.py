"""Probabilities to decisions: pure functions."""
