"""Photos, pairs of them, and what is known about them."""
