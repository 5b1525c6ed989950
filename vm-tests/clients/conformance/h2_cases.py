"""h2spec's cases, by its numbers: generic (what a server accepts), http2 (RFC 9113 by section), hpack (RFC 7541).

A connection error is good as GOAWAY with a fitting code or as the end of the connection; a stream error as RST_STREAM with
a fitting code or as a connection error; a malformed request may be answered by a 4xx, as RFC 9113, 8.1.1 allows.
"""
import concurrent.futures
import struct

from common import complain, tell, wanted
from h2_wire import *

CASES = []
BESIDE = 8


def case(number, title, **peer):
    def put(function):
        CASES.append((number, title, function, peer))
        return function

    return put


def accepts(number, title, send, stream=1):
    """After this a request on the stream is answered."""

    def run(peer):
        send(peer)
        peer.answered(stream)

    CASES.append((number, title, run, {}))


def fails(number, title, send, *codes, stream=None, answer=False, **peer):
    """After this the connection, or the stream, ends with one of these."""

    def run(it):
        send(it)
        return it.stream_error(stream, *codes, answer=answer) if stream else it.connection_error(*codes)

    CASES.append((number, title, run, peer))


def steps(*calls):
    return lambda peer: [call(peer) for call in calls]


def frame(*arguments, **more):
    return lambda peer: peer.frame(*arguments, **more)


def request(*arguments, **more):
    return lambda peer: peer.request(*arguments, **more)


def answered(stream=1):
    return lambda peer: peer.answered(stream)


OPEN = END_HEADERS
WHOLE = END_HEADERS | END_STREAM
POST = {"method": "POST", "path": "/echo"}
number = struct.pack
PRIO = number("!IB", 0, 15)

# generic: what a server accepts

accepts("generic/1/1", "connection preface", request())
accepts("generic/2/1", "PRIORITY on an idle stream", steps(frame(PRIORITY, 0, 1, PRIO), request()))
accepts("generic/2/2", "WINDOW_UPDATE on a half-closed stream", steps(request(), frame(WINDOW_UPDATE, 0, 1, number("!I", 100))))
accepts("generic/2/3", "PRIORITY on a half-closed stream", steps(request(), frame(PRIORITY, 0, 1, PRIO)))


@case("generic/2/4", "RST_STREAM on a half-closed stream")
def _(peer):
    peer.request(1)
    peer.frame(RST_STREAM, 0, 1, number("!I", CANCEL))
    peer.request(3)
    peer.answered(3)


accepts("generic/2/5", "PRIORITY on a closed stream", steps(request(1), answered(1), frame(PRIORITY, 0, 1, PRIO), request(3)), 3)
accepts("generic/3.1/1", "DATA", steps(request(1, OPEN, **POST), frame(DATA, END_STREAM, 1, b"test")))
accepts("generic/3.1/2", "several DATA", steps(request(1, OPEN, **POST), frame(DATA, 0, 1, b"te"), frame(DATA, END_STREAM, 1, b"st")))
accepts("generic/3.1/3", "DATA with padding", steps(request(1, OPEN, **POST), frame(DATA, END_STREAM | PADDED, 1, b"\x05test" + bytes(5))))
accepts("generic/3.2/1", "HEADERS", request())
accepts("generic/3.2/2", "HEADERS with padding", lambda it: it.frame(HEADERS, WHOLE | PADDED, 1, b"\x05" + fields() + bytes(5)))
accepts("generic/3.2/3", "HEADERS with priority", lambda it: it.frame(HEADERS, WHOLE | PRIORITISED, 1, PRIO + fields()))
for at, (title, value) in enumerate([("weight 1", number("!IB", 0, 0)), ("weight 256", number("!IB", 0, 255)), ("a dependency", number("!IB", 3, 15)), ("exclusive", number("!IB", 1 << 31 | 3, 15)), ("a dependency on an idle stream", number("!IB", 77, 15))], 1):
    accepts(f"generic/3.3/{at}", f"PRIORITY with {title}", steps(frame(PRIORITY, 0, 1, value), request()))
accepts("generic/3.4/1", "RST_STREAM", steps(request(1, OPEN, **POST), frame(RST_STREAM, 0, 1, number("!I", CANCEL)), request(3)), 3)
accepts("generic/3.5/1", "SETTINGS", steps(frame(SETTINGS, 0, 0, settings((3, 100))), request()))


@case("generic/3.7/1", "PING")
def _(peer):
    peer.alive()


@case("generic/3.8/1", "GOAWAY")
def _(peer):
    peer.request(1)
    peer.frame(GOAWAY, 0, 0, number("!II", 0, NO_ERROR))
    try:
        peer.answered(1)
    except Unexpected:
        if peer.late:
            raise


accepts("generic/3.9/1", "WINDOW_UPDATE of the connection", steps(frame(WINDOW_UPDATE, 0, 0, number("!I", 1)), request()))
accepts("generic/3.9/2", "WINDOW_UPDATE of a stream", steps(request(1, OPEN, **POST), frame(WINDOW_UPDATE, 0, 1, number("!I", 1)), frame(DATA, END_STREAM, 1, b"x")))


def continued(count):
    def send(peer):
        first, *rest = pieces(fields(more=[("x-long", "y" * 200)]), count + 1)
        peer.frame(HEADERS, END_STREAM, 1, first)
        for at, part in enumerate(rest, 1):
            peer.frame(CONTINUATION, END_HEADERS if at == len(rest) else 0, 1, part)

    return send


accepts("generic/3.10/1", "CONTINUATION", continued(1))
accepts("generic/3.10/2", "several CONTINUATION", continued(4))
accepts("generic/4/1", "GET", request())
accepts("generic/4/2", "HEAD", request(method="HEAD"))
accepts("generic/4/3", "POST", steps(request(1, OPEN, **POST), frame(DATA, END_STREAM, 1, b"test")))
accepts("generic/4/4", "POST with trailers", steps(request(1, OPEN, more=[("trailer", "x-test")], **POST), frame(DATA, 0, 1, b"test"), lambda it: it.frame(HEADERS, WHOLE, 1, literal("x-test", "ok"))))



def huffman(text):
    coded = hpack.Encoder().huffman_coder.encode(text)
    return bytes([0x80 | len(coded)]) + coded


HUFFMAN = hpack.Encoder().encode([(":method", "GET"), (":scheme", "https"), (":path", "/"), (":authority", ARGS.host), ("user-agent", "h2spec")], huffman=True)
PLAIN = b"\x82\x87\x84" + literal(":authority", ARGS.host)
for at, (title, block) in enumerate([
    ("indexed field", PLAIN),
    ("literal with indexing, indexed name", PLAIN + b"\x7a\x04test"),
    ("literal with indexing, indexed name, Huffman", PLAIN + b"\x7a" + huffman(b"test")),
    ("literal with indexing, new name", PLAIN + b"\x40\x06x-test\x04test"),
    ("literal with indexing, new name, Huffman", PLAIN + b"\x40" + huffman(b"x-test") + huffman(b"test")),
    ("literal without indexing, indexed name", PLAIN + b"\x0f\x2b\x04test"),
    ("literal without indexing, indexed name, Huffman", PLAIN + b"\x0f\x2b" + huffman(b"test")),
    ("literal without indexing, new name", PLAIN + b"\x00\x06x-test\x04test"),
    ("literal without indexing, new name, Huffman", PLAIN + b"\x00" + huffman(b"x-test") + huffman(b"test")),
    ("literal never indexed, indexed name", PLAIN + b"\x1f\x2b\x04test"),
    ("literal never indexed, indexed name, Huffman", PLAIN + b"\x1f\x2b" + huffman(b"test")),
    ("literal never indexed, new name", PLAIN + b"\x10\x06x-test\x04test"),
    ("literal never indexed, new name, Huffman", PLAIN + b"\x10" + huffman(b"x-test") + huffman(b"test")),
    ("dynamic table size update", b"\x3f\x61" + PLAIN),
    ("several dynamic table size updates", b"\x20\x3f\x61" + PLAIN),
    ("everything by Huffman", HUFFMAN),
], 1):
    accepts(f"generic/5/{at}", f"HPACK: {title}", request(block=block))


@case("generic/5/17", "HPACK: a field of the dynamic table")
def _(peer):
    peer.request(1, block=PLAIN + b"\x40\x06x-test\x04test")
    peer.answered(1)
    peer.request(3, block=PLAIN + b"\xbe")
    peer.answered(3)


# http2/3 and 4: the connection, frames

accepts("http2/3.5/1", "a valid preface", request())
fails("http2/3.5/2", "an invalid preface", lambda it: None, PROTOCOL_ERROR, preface=b"INVALID CONNECTION PREFACE\r\n\r\n", greet=False)


@case("http2/3.5/3", "the server's preface is its SETTINGS", greet=False)
def _(peer):
    kind = next(peer.frames())[0]
    if kind != SETTINGS:
        raise Unexpected(named(kind, 0, bytes(8)))


def ignored(number, title, send):
    def run(peer):
        send(peer)
        peer.alive()

    CASES.append((number, title, run, {}))


ignored("http2/4.1/1", "a frame of an unknown type", frame(0x16, 0, 0, bytes(8)))
ignored("http2/4.1/2", "a frame with undefined flags", frame(PING, 0x16, 0, bytes(8)))
ignored("http2/4.1/3", "a frame with the reserved bit", frame(PING, 0, 1 << 31, bytes(8)))
accepts("http2/4.2/1", "DATA of 16,384 octets", steps(request(1, OPEN, **POST), frame(DATA, END_STREAM, 1, bytes(16384))))


def beyond(kind):
    def send(peer):
        most = peer.theirs.get(5, 16384)
        if kind == DATA:
            peer.request(1, OPEN, **POST)
            peer.frame(DATA, END_STREAM, 1, bytes(most + 1))
        else:
            peer.frame(HEADERS, WHOLE, 1, fields() + b"".join(literal(f"x-{at}", "y" * 1000) for at in range(most // 1000 + 1)))

    return send


fails("http2/4.2/2", "DATA beyond SETTINGS_MAX_FRAME_SIZE", beyond(DATA), FRAME_SIZE_ERROR, stream=1)
fails("http2/4.2/3", "HEADERS beyond SETTINGS_MAX_FRAME_SIZE", beyond(HEADERS), FRAME_SIZE_ERROR)
fails("http2/4.3/1", "an invalid header block", request(block=b"\x82\x87\x84\x41\x8a\x08\x9d\x5c\x0b\x81\x70\xdc\x78\x0f\x03\x40\xff\xff\xff\xff\xff\xff\xff\xff"), COMPRESSION_ERROR)
HALF = lambda it: it.frame(HEADERS, END_STREAM, 1, fields())
fails("http2/4.3/2", "PRIORITY within a header block", steps(HALF, frame(PRIORITY, 0, 1, PRIO)), PROTOCOL_ERROR)
fails("http2/4.3/3", "HEADERS of another stream within a header block", steps(HALF, request(3)), PROTOCOL_ERROR)

# http2/5: streams

fails("http2/5.1/1", "idle: DATA", frame(DATA, END_STREAM, 1, b"test"), PROTOCOL_ERROR)
fails("http2/5.1/2", "idle: RST_STREAM", frame(RST_STREAM, 0, 1, number("!I", CANCEL)), PROTOCOL_ERROR)
fails("http2/5.1/3", "idle: WINDOW_UPDATE", frame(WINDOW_UPDATE, 0, 1, number("!I", 100)), PROTOCOL_ERROR)
fails("http2/5.1/4", "idle: CONTINUATION", frame(CONTINUATION, END_HEADERS, 1, fields()), PROTOCOL_ERROR)
fails("http2/5.1/5", "half-closed: DATA", steps(request(1, path="/slow"), frame(DATA, END_STREAM, 1, b"test")), STREAM_CLOSED, stream=1)
fails("http2/5.1/6", "half-closed: HEADERS", steps(request(1, path="/slow"), request(1)), STREAM_CLOSED, stream=1)
fails("http2/5.1/7", "half-closed: CONTINUATION", steps(request(1, path="/slow"), frame(CONTINUATION, END_HEADERS, 1, fields())), STREAM_CLOSED, PROTOCOL_ERROR)
RESET = frame(RST_STREAM, 0, 1, number("!I", CANCEL))
fails("http2/5.1/8", "closed by RST_STREAM: DATA", steps(request(1, OPEN, **POST), RESET, frame(DATA, END_STREAM, 1, b"test")), STREAM_CLOSED, stream=1)
fails("http2/5.1/9", "closed by RST_STREAM: HEADERS", steps(request(1, OPEN, **POST), RESET, request(1)), STREAM_CLOSED, stream=1)
fails("http2/5.1/10", "closed by RST_STREAM: CONTINUATION", steps(request(1, OPEN, **POST), RESET, frame(CONTINUATION, END_HEADERS, 1, fields())), STREAM_CLOSED, PROTOCOL_ERROR)
fails("http2/5.1/11", "closed: DATA", steps(request(1), answered(1), frame(DATA, END_STREAM, 1, b"test")), STREAM_CLOSED, stream=1)
fails("http2/5.1/12", "closed: HEADERS", steps(request(1), answered(1), request(1)), STREAM_CLOSED, stream=1)
fails("http2/5.1/13", "closed: CONTINUATION", steps(request(1), answered(1), frame(CONTINUATION, END_HEADERS, 1, fields())), STREAM_CLOSED, PROTOCOL_ERROR)
fails("http2/5.1.1/1", "an even stream identifier", request(2), PROTOCOL_ERROR)
fails("http2/5.1.1/2", "a smaller identifier than before", steps(request(5), request(3)), PROTOCOL_ERROR)


@case("http2/5.1.2/1", "more streams than SETTINGS_MAX_CONCURRENT_STREAMS")
def _(peer):
    most = peer.theirs.get(3)
    if most is None or most > 2000:
        return "no bound"
    last = 2 * most + 1
    for stream in range(1, last + 1, 2):
        peer.request(stream, OPEN, **POST)
    peer.stream_error(last, PROTOCOL_ERROR, REFUSED_STREAM)


fails("http2/5.3.1/1", "HEADERS that depend on themselves", lambda it: it.frame(HEADERS, WHOLE | PRIORITISED, 1, number("!IB", 1, 15) + fields()), PROTOCOL_ERROR, stream=1)
fails("http2/5.3.1/2", "PRIORITY that depends on itself", frame(PRIORITY, 0, 1, number("!IB", 1, 15)), PROTOCOL_ERROR, stream=1)


@case("http2/5.4.1/1", "a connection error closes the connection")
def _(peer):
    peer.frame(PING, 0, 3, bytes(8))
    for _ in peer.frames():
        pass
    if peer.late:
        raise Unexpected("the connection stays open")


ignored("http2/5.5/1", "an unknown extension frame", frame(0xF0, 0, 0, bytes(8)))
fails("http2/5.5/2", "an unknown extension frame within a header block", steps(HALF, frame(0xF0, 0, 0, bytes(8))), PROTOCOL_ERROR)

# http2/6: frame definitions

fails("http2/6.1/1", "DATA on stream 0", frame(DATA, END_STREAM, 0, b"test"), PROTOCOL_ERROR)
fails("http2/6.1/2", "DATA on a stream that is not open", steps(request(1), answered(1), frame(DATA, END_STREAM, 1, b"test")), STREAM_CLOSED, stream=1)
fails("http2/6.1/3", "DATA with more padding than payload", steps(request(1, OPEN, **POST), frame(DATA, END_STREAM | PADDED, 1, b"\x06test")), PROTOCOL_ERROR)
fails("http2/6.2/1", "HEADERS without END_HEADERS, then PRIORITY", steps(HALF, frame(PRIORITY, 0, 3, PRIO)), PROTOCOL_ERROR)
fails("http2/6.2/2", "HEADERS without END_HEADERS, then another's", steps(HALF, request(3)), PROTOCOL_ERROR)
fails("http2/6.2/3", "HEADERS on stream 0", request(0), PROTOCOL_ERROR)
fails("http2/6.2/4", "HEADERS with more padding than payload", lambda it: it.frame(HEADERS, WHOLE | PADDED, 1, bytes([len(fields()) + 1]) + fields()), PROTOCOL_ERROR)
fails("http2/6.3/1", "PRIORITY on stream 0", frame(PRIORITY, 0, 0, PRIO), PROTOCOL_ERROR)
fails("http2/6.3/2", "PRIORITY of another length than 5", frame(PRIORITY, 0, 1, bytes(4)), FRAME_SIZE_ERROR, stream=1)
fails("http2/6.4/1", "RST_STREAM on stream 0", frame(RST_STREAM, 0, 0, number("!I", CANCEL)), PROTOCOL_ERROR)
fails("http2/6.4/2", "RST_STREAM on an idle stream", frame(RST_STREAM, 0, 1, number("!I", CANCEL)), PROTOCOL_ERROR)
fails("http2/6.4/3", "RST_STREAM of another length than 4", steps(request(1, OPEN, **POST), frame(RST_STREAM, 0, 1, bytes(3))), FRAME_SIZE_ERROR)
fails("http2/6.5/1", "SETTINGS with ACK and a payload", frame(SETTINGS, ACK, 0, bytes(1)), FRAME_SIZE_ERROR)
fails("http2/6.5/2", "SETTINGS on a stream", frame(SETTINGS, 0, 1, settings((3, 100))), PROTOCOL_ERROR)
fails("http2/6.5/3", "SETTINGS of a length that is no multiple of 6", frame(SETTINGS, 0, 0, bytes(3)), FRAME_SIZE_ERROR)
fails("http2/6.5.2/1", "ENABLE_PUSH of 2", frame(SETTINGS, 0, 0, settings((2, 2))), PROTOCOL_ERROR)
fails("http2/6.5.2/2", "INITIAL_WINDOW_SIZE beyond the greatest", frame(SETTINGS, 0, 0, settings((4, 1 << 31))), FLOW_CONTROL_ERROR)
fails("http2/6.5.2/3", "MAX_FRAME_SIZE below the least", frame(SETTINGS, 0, 0, settings((5, 16383))), PROTOCOL_ERROR)
fails("http2/6.5.2/4", "MAX_FRAME_SIZE beyond the greatest", frame(SETTINGS, 0, 0, settings((5, 1 << 24))), PROTOCOL_ERROR)
ignored("http2/6.5.2/5", "an unknown setting", frame(SETTINGS, 0, 0, settings((0xFF, 1))))


def window(*values):
    """Answers of so many octets as the windows allow, and no more."""

    def run(peer):
        for value in values[:-1]:
            peer.frame(SETTINGS, 0, 0, settings((4, value)))
        peer.frame(SETTINGS, 0, 0, settings((4, values[-1])))
        peer.request(1)
        got = peer.until(lambda kind, _, __, ___: kind == DATA, "no DATA")
        if len(got) != values[-1]:
            raise Unexpected(f"{len(got)} octets")

    return run


@case("http2/6.5.3/1", "two values of INITIAL_WINDOW_SIZE in one frame")
def _(peer):
    peer.frame(SETTINGS, 0, 0, settings((4, 100), (4, 1)))
    peer.request(1)
    got = peer.until(lambda kind, _, __, ___: kind == DATA, "no DATA")
    if len(got) != 1:
        raise Unexpected(f"{len(got)} octets")


@case("http2/6.5.3/2", "SETTINGS are acknowledged")
def _(peer):
    peer.frame(SETTINGS, 0, 0, settings((3, 100)))
    peer.until(lambda kind, flags, _, __: kind == SETTINGS and flags & ACK, "no acknowledgement")


@case("http2/6.7/1", "PING comes back with its payload")
def _(peer):
    peer.alive()


@case("http2/6.7/2", "PING with ACK is not answered")
def _(peer):
    peer.frame(PING, ACK, 0, b"no need.")
    peer.frame(PING, 0, 0, b"the next")
    got = peer.until(lambda kind, _, __, ___: kind == PING, "no PING")
    if got != b"the next":
        raise Unexpected(f"{got}")


fails("http2/6.7/3", "PING on a stream", frame(PING, 0, 1, bytes(8)), PROTOCOL_ERROR)
fails("http2/6.7/4", "PING of another length than 8", frame(PING, 0, 0, bytes(6)), FRAME_SIZE_ERROR)
fails("http2/6.8/1", "GOAWAY on a stream", frame(GOAWAY, 0, 1, number("!II", 0, NO_ERROR)), PROTOCOL_ERROR)
fails("http2/6.9/1", "WINDOW_UPDATE by 0", frame(WINDOW_UPDATE, 0, 0, bytes(4)), PROTOCOL_ERROR)
fails("http2/6.9/2", "WINDOW_UPDATE by 0 on a stream", steps(request(1, OPEN, **POST), frame(WINDOW_UPDATE, 0, 1, bytes(4))), PROTOCOL_ERROR, stream=1)
fails("http2/6.9/3", "WINDOW_UPDATE of another length than 4", frame(WINDOW_UPDATE, 0, 0, bytes(3)), FRAME_SIZE_ERROR)
CASES.append(("http2/6.9.1/1", "a window of 1 octet gives DATA of 1 octet", window(1), {}))
MOST = number("!I", (1 << 31) - 1)
fails("http2/6.9.1/2", "WINDOW_UPDATE beyond the greatest window", steps(frame(WINDOW_UPDATE, 0, 0, MOST), frame(WINDOW_UPDATE, 0, 0, MOST)), FLOW_CONTROL_ERROR)
fails("http2/6.9.1/3", "WINDOW_UPDATE beyond the greatest window of a stream", steps(request(1, OPEN, **POST), frame(WINDOW_UPDATE, 0, 1, MOST), frame(WINDOW_UPDATE, 0, 1, MOST)), FLOW_CONTROL_ERROR, stream=1)


@case("http2/6.9.2/1", "INITIAL_WINDOW_SIZE is changed after HEADERS")
def _(peer):
    peer.frame(SETTINGS, 0, 0, settings((4, 0)))
    peer.request(1)
    peer.until(lambda kind, _, on, __: kind == HEADERS and on == 1, "no HEADERS")
    peer.frame(SETTINGS, 0, 0, settings((4, 1)))
    got = peer.until(lambda kind, _, __, ___: kind == DATA, "no DATA")
    if len(got) != 1:
        raise Unexpected(f"{len(got)} octets")


@case("http2/6.9.2/2", "a window that becomes negative")
def _(peer):
    peer.frame(SETTINGS, 0, 0, settings((4, 3)))
    peer.request(1)
    peer.until(lambda kind, _, __, ___: kind == DATA, "no DATA")
    peer.frame(SETTINGS, 0, 0, settings((4, 2)))
    peer.frame(WINDOW_UPDATE, 0, 1, number("!I", 2))
    got = peer.until(lambda kind, _, __, ___: kind == DATA, "no DATA")
    if len(got) != 1:
        raise Unexpected(f"{len(got)} octets")


fails("http2/6.9.2/3", "INITIAL_WINDOW_SIZE beyond the greatest window", frame(SETTINGS, 0, 0, settings((4, 1 << 31))), FLOW_CONTROL_ERROR)
accepts("http2/6.10/1", "several CONTINUATION", continued(3))
PART = lambda it: it.frame(CONTINUATION, 0, 1, literal("x-more", "y"))
LAST = lambda it: it.frame(CONTINUATION, END_HEADERS, 1, literal("x-last", "y"))
fails("http2/6.10/2", "CONTINUATION, then another frame", steps(HALF, PART, frame(DATA, END_STREAM, 1, b"test")), PROTOCOL_ERROR)
fails("http2/6.10/3", "CONTINUATION on stream 0", steps(HALF, frame(CONTINUATION, END_HEADERS, 0, b"")), PROTOCOL_ERROR)
fails("http2/6.10/4", "CONTINUATION after HEADERS with END_HEADERS", steps(request(1, OPEN, **POST), LAST), PROTOCOL_ERROR)
fails("http2/6.10/5", "CONTINUATION after CONTINUATION with END_HEADERS", steps(HALF, LAST, LAST), PROTOCOL_ERROR)
fails("http2/6.10/6", "CONTINUATION after DATA", steps(request(1, OPEN, **POST), frame(DATA, 0, 1, b"test"), LAST), PROTOCOL_ERROR)

# http2/7 and 8: error codes, HTTP


@case("http2/7/1", "GOAWAY with an unknown error code")
def _(peer):
    peer.frame(GOAWAY, 0, 0, number("!II", 0, 0xFF))
    try:
        peer.alive()
    except Unexpected as error:
        if peer.late or "PROTOCOL_ERROR" in str(error):
            raise


accepts("http2/7/2", "RST_STREAM with an unknown error code", steps(request(1, OPEN, **POST), frame(RST_STREAM, 0, 1, number("!I", 0xFF)), request(3)), 3)
BAD = {"stream": 1, "answer": True}
fails("http2/8.1/1", "a second HEADERS without END_STREAM", steps(request(1, OPEN, **POST), lambda it: it.frame(HEADERS, END_HEADERS, 1, literal("x-test", "ok"))), PROTOCOL_ERROR, **BAD)
fails("http2/8.1.2/1", "an uppercase field name", request(more=[("X-TEST", "ok")]), PROTOCOL_ERROR, **BAD)
fails("http2/8.1.2.1/1", "an unknown pseudo-header", request(first=[(":test", "ok")]), PROTOCOL_ERROR, **BAD)
fails("http2/8.1.2.1/2", "a response's pseudo-header", request(first=[(":status", "200")]), PROTOCOL_ERROR, **BAD)
fails("http2/8.1.2.1/3", "a pseudo-header in trailers", steps(request(1, OPEN, **POST), frame(DATA, 0, 1, b"test"), lambda it: it.frame(HEADERS, WHOLE, 1, literal(":method", "POST"))), PROTOCOL_ERROR, **BAD)
fails("http2/8.1.2.1/4", "a pseudo-header behind another field", request(first=[("x-test", "ok")]), PROTOCOL_ERROR, **BAD)
fails("http2/8.1.2.2/1", "a connection-specific field", request(more=[("connection", "keep-alive")]), PROTOCOL_ERROR, **BAD)
fails("http2/8.1.2.2/2", "TE of something but trailers", request(more=[("te", "trailers, deflate")]), PROTOCOL_ERROR, **BAD)
fails("http2/8.1.2.3/1", "an empty :path", request(path=""), PROTOCOL_ERROR, **BAD)
for at, name in enumerate([":method", ":scheme", ":path"], 2):
    fails(f"http2/8.1.2.3/{at}", f"no {name}", request(drop=[name]), PROTOCOL_ERROR, **BAD)
for at, (name, value) in enumerate([(":method", "GET"), (":scheme", "https"), (":path", "/")], 5):
    fails(f"http2/8.1.2.3/{at}", f"two {name}", request(first=[(name, value)]), PROTOCOL_ERROR, **BAD)
LENGTH = {"more": [("content-length", "1")], **POST}
fails("http2/8.1.2.6/1", "a content-length that is not the DATA's", steps(request(1, OPEN, **LENGTH), frame(DATA, END_STREAM, 1, b"test")), PROTOCOL_ERROR, **BAD)
fails("http2/8.1.2.6/2", "a content-length that is not the sum of several DATA", steps(request(1, OPEN, **LENGTH), frame(DATA, 0, 1, b"te"), frame(DATA, END_STREAM, 1, b"st")), PROTOCOL_ERROR, **BAD)
fails("http2/8.2/1", "PUSH_PROMISE from a client", lambda it: it.frame(PUSH_PROMISE, END_HEADERS, 1, number("!I", 2) + fields()), PROTOCOL_ERROR)

# hpack

fails("hpack/2.3.3/1", "an index beyond the tables", request(block=fields() + b"\xc6"), COMPRESSION_ERROR)
fails("hpack/2.3.3/2", "a name's index beyond the tables", request(block=fields() + b"\x7f\x07\x05value"), COMPRESSION_ERROR)
fails("hpack/4.2/1", "a table size update at the end of a block", request(block=fields() + b"\x21"), COMPRESSION_ERROR)
fails("hpack/5.2/1", "Huffman padding of more than 7 bits", request(block=fields() + b"\x00\x06x-test\x85\xf2\xb4\xa7\x3f\xff"), COMPRESSION_ERROR)
fails("hpack/5.2/2", "Huffman padding of zeros", request(block=fields() + b"\x00\x06x-test\x83\x49\x50\x90"), COMPRESSION_ERROR)
fails("hpack/5.2/3", "Huffman with EOS", request(block=fields() + b"\x00\x06x-test\x88\xf2\xb4\xff\xff\xff\xff\xff\xff"), COMPRESSION_ERROR)
fails("hpack/6.1/1", "index 0", request(block=fields() + b"\x80"), COMPRESSION_ERROR)
fails("hpack/6.3/1", "a table size beyond SETTINGS_HEADER_TABLE_SIZE", request(block=b"\x3f\xe2\xff\x03" + fields()), COMPRESSION_ERROR)


def run(number, title, function, arguments):
    for _ in range(2):
        try:
            peer = Peer(**arguments)
        except (OSError, Unexpected) as error:
            seen = f"no connection: {error}"
            continue
        try:
            seen = function(peer)
            return number, title, True, seen if isinstance(seen, str) else "as asked"
        except (OSError, Unexpected, StopIteration, hpack.HPACKError) as error:
            return number, title, False, f"{error}" or type(error).__name__
        finally:
            peer.socket.close()
    return number, title, False, seen


chosen = [one for one in CASES if wanted(one[0])]
complain(f"h2: {len(chosen)} cases")
with concurrent.futures.ThreadPoolExecutor(BESIDE) as pool:
    for told in pool.map(lambda one: run(*one), chosen):
        tell(*told)
