"""One verb, one file: each job has run(config). Imported by main alone, when it is asked for."""
