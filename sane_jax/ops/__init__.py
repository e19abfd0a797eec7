"""Pure mathematics of the explanation: designs, effects, learned masks and metrics."""
