"""The client side of a WebSocket that may break every rule, with the methods that Autobahn's cases call.

Text is one character an octet, as in the Python that the cases were written for.
"""
import asyncio
import base64
import os
import struct
import zlib

from common import ARGS, tls, where

PATIENCE = 300


def octets(text):
    return text if isinstance(text, bytes) else text.encode("latin-1")


def masked(key, data, begin=0):
    if not data:
        return b""
    shift = begin % 4
    pad = (key[shift:] + key[:shift]) * (len(data) // 4 + 1)
    return (int.from_bytes(data, "big") ^ int.from_bytes(pad[: len(data)], "big")).to_bytes(len(data), "big")


class Factory:
    isServer = False


class Deflate:
    """permessage-deflate (RFC 7692) with what the server has agreed to."""

    def __init__(self, answer):
        parameters = dict((part.strip().split("=") + [""])[:2] for part in answer.split(";")[1:])
        bits = lambda name: int(parameters.get(name) or 15)
        self.own, self.theirs = bits("client_max_window_bits"), bits("server_max_window_bits")
        self.forget_own = "client_no_context_takeover" in parameters
        self.forget_theirs = "server_no_context_takeover" in parameters
        self.out = self.back = None

    def compress(self, data):
        if self.out is None or self.forget_own:
            self.out = zlib.compressobj(zlib.Z_DEFAULT_COMPRESSION, zlib.DEFLATED, -self.own)
        return (self.out.compress(data) + self.out.flush(zlib.Z_SYNC_FLUSH))[:-4]

    def decompress(self, data):
        if self.back is None or self.forget_theirs:
            self.back = zlib.decompressobj(-self.theirs)
        return self.back.decompress(data + b"\x00\x00\xff\xff")


class Protocol:
    STATE_CLOSED, STATE_CONNECTING, STATE_CLOSING, STATE_OPEN = range(4)
    CLOSE_STATUS_CODE_NORMAL = 1000
    CLOSE_STATUS_CODE_PROTOCOL_ERROR = 1002
    CLOSE_STATUS_CODE_INVALID_PAYLOAD = 1007

    def __init__(self):
        self.factory = Factory()
        self.state = self.STATE_CONNECTING
        self.autoFragmentSize = 0
        self.createWirelog = False
        self.perMessageCompressionOffers = []
        self._perMessageCompress = None
        self.closedByMe = self.failedByMe = self.droppedByMe = self.wasClean = self.connectionWasOpen = False
        self.localCloseCode = self.localCloseReason = self.remoteCloseCode = self.remoteCloseReason = None
        self.txFrameStats, self.trafficStats = {}, None
        self.raw = False
        self.waiting = []
        self.case = None

    # What a case may do.

    def enableWirelog(self, _):
        pass

    def continueLater(self, delay, function, tag=None):
        def go():
            if self.state != self.STATE_CLOSED:
                function()

        self.later(delay, go)

    def killAfter(self, delay):
        def go():
            if self.state != self.STATE_CLOSED:
                self.failedByMe = self.droppedByMe = True
                self.writer.transport.abort()

        # The suite's second is for a machine that does nothing else.
        self.later(3 * delay, go)

    def closeAfter(self, delay):
        # A long one is only there so that a case ends at all; a short one is part of it.
        self.later(delay if delay < 10 else 6 * delay, self.sendClose)

    def sendClose(self, code=None, reason=None):
        self.sendCloseFrame(code, reason)

    def sendCloseFrame(self, code=None, reasonUtf8=None, isReply=False):
        if self.state != self.STATE_OPEN:
            return
        payload = b"" if code is None else struct.pack("!H", code) + octets(reasonUtf8 or "")
        self.state = self.STATE_CLOSING
        self.closedByMe = not isReply
        self.localCloseCode, self.localCloseReason = code, reasonUtf8
        self.sendFrame(opcode=8, payload=payload)

    def sendFrame(self, opcode, payload="", fin=True, rsv=0, mask=None, payload_len=None, chopsize=None, sync=False):
        data = octets(payload)
        if payload_len is not None:
            data = (data * (payload_len // max(len(data), 1) + 1))[:payload_len]
        key = os.urandom(4)
        self.txFrameStats[opcode] = self.txFrameStats.get(opcode, 0) + 1
        self.write(self.head(opcode, len(data), fin, rsv) + key + masked(key, data), chopsize)

    def sendMessage(self, payload, isBinary=False, fragmentSize=None, sync=False, doNotCompress=False):
        if self.state != self.STATE_OPEN:
            return
        data, first = octets(payload), 2 if isBinary else 1
        rsv = 0
        if self._perMessageCompress and not doNotCompress:
            data, rsv = self._perMessageCompress.compress(data), 4
        size = fragmentSize or self.autoFragmentSize or max(len(data), 1)
        parts = [data[at : at + size] for at in range(0, len(data), size)] or [b""]
        for number, part in enumerate(parts):
            opcode = first if number == 0 else 0
            self.sendFrame(opcode, part, number == len(parts) - 1, rsv if number == 0 else 0)

    def beginMessage(self, isBinary=False):
        self.opcode = 2 if isBinary else 1

    def beginMessageFrame(self, length):
        self.key, self.sent = os.urandom(4), 0
        self.write(self.head(self.opcode, length, False, 0) + self.key)
        self.opcode = 0

    def sendMessageFrameData(self, payload, sync=False):
        data = octets(payload)
        self.write(masked(self.key, data, self.sent))
        self.sent += len(data)

    def endMessage(self):
        self.sendFrame(0)

    # The wire.

    @staticmethod
    def head(opcode, length, fin, rsv):
        first = bytes([(0x80 if fin else 0) | rsv << 4 | opcode])
        if length < 126:
            return first + bytes([0x80 | length])
        if length < 65536:
            return first + struct.pack("!BH", 0x80 | 126, length)
        return first + struct.pack("!BQ", 0x80 | 127, length)

    def write(self, data, chop=None):
        """What is written in one go goes out in one go, and octets that are chopped each by themselves."""
        if not self.waiting:
            asyncio.get_running_loop().call_soon(self.flush)
        if not chop:
            self.waiting.append(data)
            return
        self.waiting.append(b"")
        self.flush()
        for at in range(0, len(data), chop):
            if not self.writer.transport.is_closing():
                self.writer.write(data[at : at + chop])

    def flush(self):
        data, self.waiting = b"".join(self.waiting), []
        if data and not self.writer.transport.is_closing():
            self.writer.write(data)

    def later(self, delay, function):
        asyncio.get_running_loop().call_later(delay, function)

    async def run(self, case):
        """Connects, lets the case speak, and reads until the connection is gone."""
        self.case = case
        try:
            await asyncio.wait_for(self.talk(), PATIENCE)
        except (OSError, asyncio.IncompleteReadError, asyncio.TimeoutError, zlib.error) as error:
            self.broke = type(error).__name__
        finally:
            self.state = self.STATE_CLOSED
            if getattr(self, "writer", None):
                self.writer.transport.abort()
            case.onConnectionLost(self.failedByMe)

    async def talk(self):
        address, port = where()
        reader, self.writer = await asyncio.open_connection(
            address, port, ssl=tls("http/1.1"), server_hostname=ARGS.host, limit=1 << 26
        )
        extensions = ", ".join(offer.words() for offer in self.perMessageCompressionOffers)
        lines = [
            "GET /echo HTTP/1.1",
            f"Host: {ARGS.host}",
            "Upgrade: websocket",
            "Connection: Upgrade",
            f"Sec-WebSocket-Key: {base64.b64encode(os.urandom(16)).decode()}",
            "Sec-WebSocket-Version: 13",
        ]
        if extensions:
            lines.append(f"Sec-WebSocket-Extensions: {extensions}")
        self.writer.write(("\r\n".join(lines) + "\r\n\r\n").encode())
        head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
        self.status = head.split("\r\n")[0]
        if " 101 " not in self.status + " ":
            return
        for line in head.split("\r\n")[1:]:
            name, _, value = line.partition(":")
            if name.lower() == "sec-websocket-extensions":
                self._perMessageCompress = Deflate(value)
        self.state, self.connectionWasOpen = self.STATE_OPEN, True
        self.case.onOpen()
        await self.read(reader)

    async def read(self, reader):
        message, kind, packed = b"", 0, False
        while True:
            first, second = await reader.readexactly(2)
            length = second & 127
            if length == 126:
                (length,) = struct.unpack("!H", await reader.readexactly(2))
            elif length == 127:
                (length,) = struct.unpack("!Q", await reader.readexactly(8))
            data = await reader.readexactly(length)
            opcode, fin = first & 15, first & 128
            if opcode == 8:
                self.closed(data)
                # The server is the one to end the connection.
                await asyncio.wait_for(reader.read(), 5)
                return
            if opcode == 9:
                self.case.onPing(data.decode("latin-1"))
                self.sendFrame(10, data)
            elif opcode == 10:
                self.case.onPong(data.decode("latin-1"))
            else:
                if opcode:
                    message, kind, packed = b"", opcode, bool(first & 64)
                message += data
                if fin:
                    whole = self._perMessageCompress.decompress(message) if packed else message
                    if self.state == self.STATE_OPEN:
                        self.case.onMessage(whole if self.raw else whole.decode("latin-1"), kind == 2)

    def closed(self, data):
        if len(data) >= 2:
            (self.remoteCloseCode,) = struct.unpack("!H", data[:2])
            self.remoteCloseReason = data[2:].decode("utf-8", "replace")
        self.wasClean = True
        self.sendCloseFrame(self.remoteCloseCode, None, isReply=True)
        self.case.onClose(True, self.remoteCloseCode, self.remoteCloseReason)
