"""Web applications: the user study and the live viewer (extra `web`)."""
