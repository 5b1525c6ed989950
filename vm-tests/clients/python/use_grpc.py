"""grpcio, unary and server streaming; the messages are plain bytes, so that nothing needs to be generated."""
import sys

import grpc

channel = grpc.secure_channel("grpc.clients.example:443", grpc.ssl_channel_credentials())
metadata = [("authorization", "Bearer placeholder")]
plain = {"request_serializer": bytes, "response_deserializer": bytes}

match sys.argv[1]:
    case "read":
        print(channel.unary_unary("/clients.Orders/Read", **plain)(b"read", metadata=metadata, timeout=60).decode())
    case "write":
        print(channel.unary_unary("/clients.Orders/Place", **plain)(b"juniper", metadata=metadata, timeout=60).decode())
    case "stream":
        for message in channel.unary_stream("/clients.Orders/Watch", **plain)(b"watch", metadata=metadata, timeout=60):
            print(message.decode(), flush=True)
