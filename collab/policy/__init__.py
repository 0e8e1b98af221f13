"""May they? The rules that a request, a connection or an event is held against."""
