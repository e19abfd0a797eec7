"""Why two images match, in words: attribute models, concepts, tables, their quality."""
