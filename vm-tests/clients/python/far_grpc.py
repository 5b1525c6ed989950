"""A gRPC server that wants the real credential; its messages are plain bytes."""
import asyncio

import grpc

from far_common import CERTIFICATE, KEY, PORT, SECRET, events, note


async def known(context):
    if not any(key == "authorization" and SECRET in value for key, value in context.invocation_metadata()):
        await context.abort(grpc.StatusCode.UNAUTHENTICATED, "invalid credential")


async def read(request, context):
    note(request.decode())
    await known(context)
    return b"lavender-42"


async def place(request, context):
    note(request.decode())
    await known(context)
    return b"placed-17"


async def watch(request, context):
    await known(context)
    async for event in events():
        yield event.encode()


async def main():
    plain = {"request_deserializer": bytes, "response_serializer": bytes}
    handlers = {
        "Read": grpc.unary_unary_rpc_method_handler(read, **plain),
        "Place": grpc.unary_unary_rpc_method_handler(place, **plain),
        "Watch": grpc.unary_stream_rpc_method_handler(watch, **plain),
    }
    server = grpc.aio.server()
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("clients.Orders", handlers),))
    with open(KEY, "rb") as key, open(CERTIFICATE, "rb") as certificate:
        credentials = grpc.ssl_server_credentials([(key.read(), certificate.read())])
    server.add_secure_port(f"127.0.0.1:{PORT}", credentials)
    await server.start()
    await server.wait_for_termination()


asyncio.run(main())
