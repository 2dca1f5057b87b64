"""Training over several machines: the same metrics, and what ends when one of them dies."""
