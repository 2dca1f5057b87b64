"""Whether the notebook's network gains from pretraining on drawn motion."""
