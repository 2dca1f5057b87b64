"""From a source of videos to batches of frames."""
