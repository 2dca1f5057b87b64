"""What an encoder is shown, and how far that generalises to unseen cameras."""
