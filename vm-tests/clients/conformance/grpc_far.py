"""The server of gRPC's interop cases, by grpcio."""
import asyncio
import sys

import grpc
from grpc_messages import body, pack, payload, unpack

PORT, CERTIFICATE, KEY = int(sys.argv[1]), sys.argv[2], sys.argv[3]
INITIAL, TRAILING = "x-grpc-test-echo-initial", "x-grpc-test-echo-trailing-bin"


async def echo_metadata(context):
    for key, value in context.invocation_metadata():
        if key == INITIAL:
            await context.send_initial_metadata(((key, value),))
        elif key == TRAILING:
            context.set_trailing_metadata(((key, value),))


async def wanted_status(fields, context):
    if 7 in fields:
        status = unpack(fields[7][0])
        code = status.get(1, [0])[0]
        known = next(known for known in grpc.StatusCode if known.value[0] == code)
        await context.abort(known, status.get(2, [b""])[0].decode(), context.trailing_metadata())


async def empty(_, context):
    return b""


async def unary(request, context):
    fields = unpack(request)
    if 6 in fields:
        context.set_compression(grpc.Compression.Gzip)
    await echo_metadata(context)
    await wanted_status(fields, context)
    return pack(f1=payload(fields.get(2, [0])[0]))


async def streaming_input(requests, context):
    total = 0
    async for request in requests:
        total += body(request, 1)
    return pack(f1=total)


async def outputs(request, context):
    fields = unpack(request)
    for wanted in fields.get(2, []):
        parameters = unpack(wanted)
        await asyncio.sleep(parameters.get(2, [0])[0] / 1e6)
        yield pack(f1=payload(parameters.get(1, [0])[0]))
    await wanted_status(fields, context)


async def full_duplex(requests, context):
    await echo_metadata(context)
    async for request in requests:
        async for answer in outputs(request, context):
            yield answer


async def main():
    plain = {"request_deserializer": bytes, "response_serializer": bytes}
    handlers = {
        "EmptyCall": grpc.unary_unary_rpc_method_handler(empty, **plain),
        "UnaryCall": grpc.unary_unary_rpc_method_handler(unary, **plain),
        "StreamingInputCall": grpc.stream_unary_rpc_method_handler(streaming_input, **plain),
        "StreamingOutputCall": grpc.unary_stream_rpc_method_handler(outputs, **plain),
        "FullDuplexCall": grpc.stream_stream_rpc_method_handler(full_duplex, **plain),
    }
    server = grpc.aio.server()
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("grpc.testing.TestService", handlers),))
    with open(KEY, "rb") as key, open(CERTIFICATE, "rb") as certificate:
        credentials = grpc.ssl_server_credentials([(key.read(), certificate.read())])
    server.add_secure_port(f"127.0.0.1:{PORT}", credentials)
    await server.start()
    await server.wait_for_termination()


asyncio.run(main())
