"""Whether the order of the frames matters."""
