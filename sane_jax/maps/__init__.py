"""Why two images match, as a map: the explainer, its results, and the index of a collection."""
