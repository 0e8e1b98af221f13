"""wsproto, as another reader of the frames of a client."""

from __future__ import annotations

import wsproto.frame_protocol as oracle


class Oracle:
    """wsproto as a server that has shaken hands."""

    def __init__(self) -> None:
        self._protocol = oracle.FrameProtocol(client=False, extensions=[])
        self._parts: list[str | bytes] = []
        self.closed = False
        self.failed = False

    def messages(self, data: bytes) -> list[str | bytes]:
        """The messages that these bytes complete."""
        found: list[str | bytes] = []
        if self.closed or self.failed:
            return found
        self._protocol.receive_bytes(data)
        try:
            for frame in self._protocol.received_frames():
                if frame.opcode is oracle.Opcode.CLOSE:
                    self.closed = True
                    return found
                if frame.opcode.iscontrol():
                    continue
                self._parts.append(frame.payload)
                if frame.message_finished:
                    found.append(self._whole())
        except oracle.ParseFailed:
            self.failed = True
        return found

    def _whole(self) -> str | bytes:
        parts, self._parts = self._parts, []
        if any(isinstance(part, str) for part in parts):
            return "".join(str(part) for part in parts)
        return b"".join(bytes(part) for part in parts)
