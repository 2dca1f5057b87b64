"""Predictions to numbers: pure functions, arrays in, plain values out."""
