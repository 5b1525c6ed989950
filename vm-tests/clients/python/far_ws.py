"""A WebSocket server that wants the real credential."""
import asyncio
import ssl

import websockets

from far_common import CERTIFICATE, KEY, PORT, SECRET, events, note


async def serve(socket):
    if SECRET not in socket.request.headers.get("authorization", ""):
        await socket.close(1008, "invalid credential")
        return
    said = await socket.recv()
    note(str(said))
    if said == "stream":
        async for event in events():
            await socket.send(event)
    else:
        await socket.send("placed-17" if said == "juniper" else "lavender-42")


async def main():
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    tls.load_cert_chain(CERTIFICATE, KEY)
    async with websockets.serve(serve, "127.0.0.1", PORT, ssl=tls, subprotocols=["orders.v1"]):
        await asyncio.get_running_loop().create_future()


asyncio.run(main())
