"""The live viewer on explanation indexes: why a query matches what it matches."""
