"""The user study: simulated participants, material to ask people, and its statistics."""
