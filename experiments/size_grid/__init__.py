"""How many frames, how large, how much memory."""
