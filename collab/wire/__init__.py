"""What is said on the wire: sans-IO, no Trio, no socket, no web framework."""
