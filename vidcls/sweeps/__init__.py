"""What a multirun and report.py do."""
