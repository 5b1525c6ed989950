"""The websockets library."""
import asyncio
import sys

import websockets

SAID = {"read": "read", "write": "juniper", "stream": "stream"}


async def main(case):
    headers = {"Authorization": "Bearer placeholder"}
    async with websockets.connect("wss://ws.clients.example/v1/socket", additional_headers=headers, subprotocols=["orders.v1"], open_timeout=60) as socket:
        assert socket.subprotocol == "orders.v1", socket.subprotocol
        await socket.send(SAID[case])
        async for message in socket:
            print(message, flush=True)


asyncio.run(main(sys.argv[1]))
