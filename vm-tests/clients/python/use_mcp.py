"""The MCP SDK's client over streamable HTTP."""
import asyncio
import sys

import mcp

TOOLS = {"read": "look_up", "write": "place_order", "stream": "watch"}
ARGUMENTS = {"read": {}, "write": {"note": "juniper"}, "stream": {}}


async def progress(done, total, message):
    print(message, flush=True)


async def main(case):
    async with mcp.Client("https://mcp.clients.example/mcp") as client:
        result = await client.call_tool(TOOLS[case], ARGUMENTS[case], progress_callback=progress)
        print(result.content[0].text)


asyncio.run(main(sys.argv[1]))
