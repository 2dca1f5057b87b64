"""A model from outside the package."""
