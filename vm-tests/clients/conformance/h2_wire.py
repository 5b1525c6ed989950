"""The client side of an HTTP/2 connection that sends whatever frames it is told to, and says what came back."""
import socket
import struct
import time

import hpack
from common import ARGS, tls, where

DATA, HEADERS, PRIORITY, RST_STREAM, SETTINGS, PUSH_PROMISE, PING, GOAWAY, WINDOW_UPDATE, CONTINUATION = range(10)
END_STREAM = ACK = 1
END_HEADERS, PADDED, PRIORITISED = 4, 8, 32
(NO_ERROR, PROTOCOL_ERROR, INTERNAL_ERROR, FLOW_CONTROL_ERROR, SETTINGS_TIMEOUT, STREAM_CLOSED, FRAME_SIZE_ERROR,
 REFUSED_STREAM, CANCEL, COMPRESSION_ERROR) = range(10)
PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
PATIENCE = 6


class Unexpected(Exception):
    """What was seen instead."""


def literal(name, value):
    """A header field without indexing and without Huffman coding, whatever its octets are."""
    name, value = (text if isinstance(text, bytes) else text.encode() for text in (name, value))

    def length(octets):
        if len(octets) < 127:
            return bytes([len(octets)])
        rest, out = len(octets) - 127, bytearray([127])
        while rest > 127:
            out.append(rest & 127 | 128)
            rest >>= 7
        return bytes(out) + bytes([rest])

    return b"\x00" + length(name) + name + length(value) + value


def fields(method="GET", path="/", more=(), drop=(), scheme="https", first=()):
    """The header block of a good request, but for what is asked."""
    every = [*first, (":method", method), (":scheme", scheme), (":path", path), (":authority", ARGS.host), *more]
    return b"".join(literal(name, value) for name, value in every if name not in drop)


def settings(*pairs):
    return b"".join(struct.pack("!HI", key, value) for key, value in pairs)


class Peer:
    def __init__(self, preface=PREFACE, own=b"", greet=True):
        address, port = where()
        raw = socket.create_connection((address, port), timeout=PATIENCE)
        raw.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.socket = tls("h2").wrap_socket(raw, server_hostname=ARGS.host)
        if self.socket.selected_alpn_protocol() != "h2":
            raise Unexpected("no HTTP/2 by ALPN")
        self.buffer, self.decoder, self.theirs = b"", hpack.Decoder(), {}
        self.gone = None
        self.send(preface)
        if greet:
            self.frame(SETTINGS, 0, 0, own)
            self.until(lambda kind, flags, _, __: kind == SETTINGS and flags & ACK, "settings are not acknowledged")

    def send(self, data):
        try:
            self.socket.sendall(data)
        except OSError as error:
            self.gone = type(error).__name__

    def frame(self, kind, flags=0, stream=0, payload=b"", length=None):
        size = len(payload) if length is None else length
        self.send(struct.pack("!I", size)[1:] + bytes([kind, flags]) + struct.pack("!I", stream) + payload)

    def request(self, stream=1, flags=END_STREAM | END_HEADERS, block=None, **more):
        self.frame(HEADERS, flags, stream, fields(**more) if block is None else block)

    def read(self, deadline):
        """The next frame; none when the connection is gone, or the time is over."""
        while len(self.buffer) < 9 or len(self.buffer) < 9 + int.from_bytes(self.buffer[:3], "big"):
            left = deadline - time.monotonic()
            if left <= 0:
                return "late"
            self.socket.settimeout(left)
            try:
                got = self.socket.recv(65536)
            except TimeoutError:
                return "late"
            except OSError as error:
                self.gone = type(error).__name__
                return None
            if not got:
                self.gone = "closed"
                return None
            self.buffer += got
        size = int.from_bytes(self.buffer[:3], "big")
        kind, flags, stream = self.buffer[3], self.buffer[4], int.from_bytes(self.buffer[5:9], "big") & 0x7FFFFFFF
        payload, self.buffer = self.buffer[9 : 9 + size], self.buffer[9 + size :]
        if kind == SETTINGS and not flags & ACK:
            for at in range(0, size, 6):
                key, value = struct.unpack("!HI", payload[at : at + 6])
                self.theirs[key] = value
            self.frame(SETTINGS, ACK)
        return kind, flags, stream, payload

    def frames(self, patience=PATIENCE):
        deadline = time.monotonic() + patience
        while True:
            got = self.read(deadline)
            if got in (None, "late"):
                self.late = got == "late"
                return
            yield got

    def until(self, wanted, complaint):
        seen = []
        for kind, flags, stream, payload in self.frames():
            if wanted(kind, flags, stream, payload):
                return payload
            seen.append(named(kind, stream, payload))
        raise Unexpected(f"{complaint}: {', '.join(seen[-3:]) or 'nothing'}, then {self.end()}")

    def end(self):
        return "silence" if self.late else "the connection was gone"

    # What must follow.

    def answered(self, stream=1, patience=PATIENCE):
        """A whole good answer on the stream."""
        status, body, seen = None, b"", []
        for kind, flags, on, payload in self.frames(patience):
            if on == stream and kind == HEADERS:
                status = dict(self.decoder.decode(payload, raw=True)).get(b":status", status)
            elif kind == HEADERS:
                self.decoder.decode(payload, raw=True)
            elif on == stream and kind == DATA:
                body += payload
                self.frame(WINDOW_UPDATE, 0, 0, struct.pack("!I", max(len(payload), 1)))
            elif kind in (RST_STREAM, GOAWAY):
                seen.append(named(kind, on, payload))
            if on == stream and kind in (HEADERS, DATA) and flags & END_STREAM:
                if status is None or not status.startswith(b"2"):
                    raise Unexpected(f"status {status}")
                return body
        raise Unexpected(f"no answer: {', '.join(seen) or 'nothing'}, then {self.end()}")

    def alive(self):
        """A ping comes back: what was sent before was passed over."""
        self.frame(PING, 0, 0, b"are you.")
        for kind, flags, on, payload in self.frames():
            if kind == PING and flags & ACK and payload == b"are you.":
                return
            if kind == GOAWAY:
                raise Unexpected(named(kind, on, payload))
        raise Unexpected(f"no ping came back, but {self.end()}")

    def connection_error(self, *codes):
        """GOAWAY with one of these, or the end of the connection."""
        return self.refused(None, codes)

    def stream_error(self, stream, *codes, answer=False):
        """RST_STREAM with one of these, or more than that; for a malformed request also an answer that refuses it (8.1.1)."""
        return self.refused(stream, codes, answer)

    def refused(self, stream, codes, answer=False):
        seen = []
        for kind, flags, on, payload in self.frames():
            if kind == GOAWAY and struct.unpack("!I", payload[4:8])[0] in codes:
                return named(kind, on, payload)
            if kind == RST_STREAM and on == stream and struct.unpack("!I", payload[:4])[0] in codes:
                return named(kind, on, payload)
            if kind == HEADERS:
                status = dict(self.decoder.decode(payload, raw=True)).get(b":status", b"")
                if answer and on == stream and status.startswith(b"4"):
                    return f"status {status.decode()}"
                seen.append(f"status {status.decode()}")
            elif kind in (RST_STREAM, GOAWAY):
                seen.append(named(kind, on, payload))
        if not self.late:
            return "the connection was closed"
        raise Unexpected(f"{', '.join(seen) or 'nothing'}, then silence")


NAMES = "DATA HEADERS PRIORITY RST_STREAM SETTINGS PUSH_PROMISE PING GOAWAY WINDOW_UPDATE CONTINUATION".split()
CODES = ("NO_ERROR PROTOCOL_ERROR INTERNAL_ERROR FLOW_CONTROL_ERROR SETTINGS_TIMEOUT STREAM_CLOSED FRAME_SIZE_ERROR "
         "REFUSED_STREAM CANCEL COMPRESSION_ERROR").split()


def named(kind, stream, payload):
    name = NAMES[kind] if kind < len(NAMES) else str(kind)
    code = {GOAWAY: payload[4:8], RST_STREAM: payload[:4]}.get(kind)
    if code:
        value = int.from_bytes(code, "big")
        name += f" {CODES[value] if value < len(CODES) else value}"
    return name


def pieces(block, count):
    size = len(block) // count + 1
    return [block[at : at + size] for at in range(0, len(block), size)]


