"""Plugins of Hydra, which looks for packages of this name."""
