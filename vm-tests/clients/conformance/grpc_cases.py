"""gRPC's interop cases (grpc/doc/interop-test-descriptions.md), by grpcio as the client."""
import queue

import grpc
from common import ARGS, tell, wanted, where
from grpc_messages import body, pack, payload

TEST = "/grpc.testing.TestService/"
PATIENCE = 20
REQUESTS, ANSWERS = [27182, 8, 1828, 45904], [31415, 9, 2653, 58979]
SPECIAL = "\t\ntest with whitespace\r\nand Unicode BMP \u263a and non-BMP \U0001f608\t\n"
METADATA = (
    ("x-grpc-test-echo-initial", "test_initial_metadata_value"),
    ("x-grpc-test-echo-trailing-bin", b"\xab\xab\xab"),
)


def channel():
    address, port = where()
    roots = open(ARGS.roots, "rb").read() if ARGS.roots else None
    options = (("grpc.ssl_target_name_override", ARGS.host), ("grpc.default_authority", ARGS.host)) if ARGS.address else ()
    return grpc.secure_channel(f"{address}:{port}", grpc.ssl_channel_credentials(roots), options)


def output(sizes, interval=0, **more):
    return pack(f2=[pack(f1=size, f2=interval) for size in sizes], **more)


def unary(stub, request, **more):
    return stub.unary_unary(TEST + "UnaryCall")(request, timeout=PATIENCE, **more)


def empty_unary(stub):
    return len(stub.unary_unary(TEST + "EmptyCall")(b"", timeout=PATIENCE)) == 0


def large_unary(stub):
    return body(unary(stub, pack(f2=314159, f3=payload(271828))), 1) == 314159


def client_compressed_unary(stub):
    request = pack(f2=314159, f3=payload(271828))
    return body(unary(stub, request, compression=grpc.Compression.Gzip), 1) == 314159


def server_compressed_unary(stub):
    return body(unary(stub, pack(f2=314159, f3=payload(271828), f6=b"\x08\x01")), 1) == 314159


def client_streaming(stub):
    call = stub.stream_unary(TEST + "StreamingInputCall")
    answer = call(iter([pack(f1=payload(size)) for size in REQUESTS]), timeout=PATIENCE)
    return answer == pack(f1=sum(REQUESTS))


def server_streaming(stub):
    call = stub.unary_stream(TEST + "StreamingOutputCall")
    return [body(answer, 1) for answer in call(output(ANSWERS), timeout=PATIENCE)] == ANSWERS


def duplex(stub, sizes, timeout=PATIENCE, **more):
    """A call whose requests are sent by hand."""
    asks = queue.Queue()
    call = stub.stream_stream(TEST + "FullDuplexCall")(iter(asks.get, None), timeout=timeout, **more)
    for size in sizes:
        asks.put(size)
    return asks, call


def ping_pong(stub):
    asks, call = duplex(stub, [])
    got = []
    for request, answer in zip(REQUESTS, ANSWERS):
        asks.put(output([answer], f3=payload(request)))
        got.append(body(next(call), 1))
    asks.put(None)
    return got == ANSWERS and not list(call)


def empty_stream(stub):
    return not list(duplex(stub, [None])[1])


def custom_metadata(stub):
    call = stub.unary_unary(TEST + "UnaryCall")
    _, one = call.with_call(pack(f2=314159, f3=payload(271828)), metadata=METADATA, timeout=PATIENCE)
    _, two = duplex(stub, [output([314159], f3=payload(271828)), None], metadata=METADATA)
    list(two)
    echoed = lambda call: (METADATA[0] in call.initial_metadata()) and (METADATA[1] in call.trailing_metadata())
    return echoed(one) and echoed(two)


def failure(call):
    try:
        list(call()) if callable(call) else list(call)
    except grpc.RpcError as error:
        return error.code(), error.details()
    return None


def status_code_and_message(stub):
    asked = pack(f1=2, f2="test status message")
    expected = (grpc.StatusCode.UNKNOWN, "test status message")
    one = failure(lambda: unary(stub, pack(f7=asked)))
    two = failure(duplex(stub, [pack(f7=asked), None])[1])
    return one == expected and two == expected


def special_status_message(stub):
    found = failure(lambda: unary(stub, pack(f7=pack(f1=2, f2=SPECIAL))))
    return found == (grpc.StatusCode.UNKNOWN, SPECIAL)


def unimplemented_method(stub):
    found = failure(lambda: stub.unary_unary(TEST + "UnimplementedCall")(b"", timeout=PATIENCE))
    return found and found[0] == grpc.StatusCode.UNIMPLEMENTED


def unimplemented_service(stub):
    call = stub.unary_unary("/grpc.testing.UnimplementedService/UnimplementedCall")
    found = failure(lambda: call(b"", timeout=PATIENCE))
    return found and found[0] == grpc.StatusCode.UNIMPLEMENTED


def cancel_after_begin(stub):
    asks = queue.Queue()
    call = stub.stream_unary(TEST + "StreamingInputCall").future(iter(asks.get, None), timeout=PATIENCE)
    call.cancel()
    asks.put(None)
    return call.cancelled() and call.code() == grpc.StatusCode.CANCELLED


def cancel_after_first_response(stub):
    asks, call = duplex(stub, [output([ANSWERS[0]], f3=payload(REQUESTS[0]))])
    first = body(next(call), 1) == ANSWERS[0]
    call.cancel()
    asks.put(None)
    found = failure(call)
    return first and found and found[0] == grpc.StatusCode.CANCELLED


def timeout_on_sleeping_server(stub):
    asks, call = duplex(stub, [output([31415], 5_000_000, f3=payload(27182))], timeout=0.5)
    found = failure(call)
    asks.put(None)
    return found and found[0] == grpc.StatusCode.DEADLINE_EXCEEDED


def rpc_soak(stub):
    return all(body(unary(stub, pack(f2=100, f3=payload(100))), 1) == 100 for _ in range(100))


def channel_soak(_):
    for _ in range(10):
        with channel() as stub:
            if body(unary(stub, pack(f2=100, f3=payload(100))), 1) != 100:
                return False
    return True


CASES = [
    empty_unary, large_unary, client_compressed_unary, server_compressed_unary, client_streaming, server_streaming,
    ping_pong, empty_stream, custom_metadata, status_code_and_message, special_status_message, unimplemented_method,
    unimplemented_service, cancel_after_begin, cancel_after_first_response, timeout_on_sleeping_server, rpc_soak,
    channel_soak,
]

for case in CASES:
    if not wanted(case.__name__):
        continue
    try:
        with channel() as stub:
            ok = bool(case(stub))
            seen = "as described" if ok else "not as described"
    except Exception as error:  # whatever it is, it is this case's answer
        code = getattr(error, "code", lambda: "")()
        ok, seen = False, f"{type(error).__name__} {code} {getattr(error, 'details', lambda: '')() or ''}".strip()
    tell(case.__name__, case.__name__.replace("_", " "), ok, seen)
