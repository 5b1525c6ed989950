"""Python aiohttp."""
import asyncio
import sys

import aiohttp

API = "https://api.clients.example"


async def main(case):
    async with aiohttp.ClientSession(headers={"Authorization": "Bearer placeholder"}) as session:
        match case:
            case "read":
                async with session.get(API + "/v1/things/42") as answer:
                    print(await answer.json())
            case "write":
                async with session.post(API + "/v1/orders", json={"note": "juniper"}) as answer:
                    print(answer.status, await answer.text())
            case "stream":
                async with session.get(API + "/v1/events") as answer:
                    async for line in answer.content:
                        print(line.decode().strip(), flush=True)


asyncio.run(main(sys.argv[1]))
