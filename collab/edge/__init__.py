"""Sockets: the one port, the WebSocket acceptor, the life of a connection."""
