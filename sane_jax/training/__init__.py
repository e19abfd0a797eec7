"""Training loops, their checkpoints, and measures of an embedding."""
