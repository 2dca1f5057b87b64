"""What a sweep costs beyond its jobs."""
