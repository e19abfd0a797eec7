"""The user study as a web application."""
