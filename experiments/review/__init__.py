"""What review, suspect labels, the choice of what to label, and comparisons with new data are worth on real clips."""
