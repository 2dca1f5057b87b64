"""Plugins of Hydra, which discovers packages below this name."""
