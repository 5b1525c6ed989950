"""The far side of the WebSocket cases: the `websockets` library, which says everything back."""
import asyncio
import os
import ssl
import sys

os.environ["WEBSOCKETS_MAX_FRAGMENTS"] = "1000000"
import websockets
from websockets.extensions.permessage_deflate import ServerPerMessageDeflateFactory

PORT, CERTIFICATE, KEY = int(sys.argv[1]), sys.argv[2], sys.argv[3]


async def echo(socket):
    async for message in socket:
        await socket.send(message)


async def main():
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    tls.load_cert_chain(CERTIFICATE, KEY)
    async with websockets.serve(
        echo, "127.0.0.1", PORT, ssl=tls, max_size=None, max_queue=None, ping_interval=None, close_timeout=2,
        compression=None, extensions=[ServerPerMessageDeflateFactory()],
    ):
        await asyncio.get_running_loop().create_future()


asyncio.run(main())
