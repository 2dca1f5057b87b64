"""What a source holds, looked at before anything is trained on it."""
