"""The HTTP side: the Quart-Trio app and the server that runs it on one stream at a time."""
