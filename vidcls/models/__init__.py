"""From batches of frames to logits."""
