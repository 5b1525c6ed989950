"""An MCP server over streamable HTTP, by the MCP SDK; it wants the real credential."""
import uvicorn
from mcp.server import MCPServer
from mcp.server.mcpserver import Context
from mcp.server.transport_security import TransportSecuritySettings

import far_common

server = MCPServer("clients")


@server.tool()
async def look_up() -> str:
    """Looks a thing up."""
    return "lavender-42"


@server.tool()
async def place_order(note: str) -> str:
    """Places an order."""
    far_common.note(note)
    return "placed-17"


@server.tool()
async def watch(context: Context) -> str:
    """Tells of three events."""
    done = 0
    async for event in far_common.events():
        done += 1
        await context.report_progress(done, 3, event)
    return "watched"


anybody = TransportSecuritySettings(enable_dns_rebinding_protection=False)
inner = server.streamable_http_app(transport_security=anybody)


async def app(scope, receive, send):
    if scope["type"] == "http" and not any(far_common.SECRET.encode() in value for _, value in scope["headers"]):
        await send({"type": "http.response.start", "status": 401, "headers": []})
        await send({"type": "http.response.body", "body": b"invalid credential"})
        return
    await inner(scope, receive, send)


uvicorn.run(
    app,
    host="127.0.0.1",
    port=far_common.PORT,
    ssl_certfile=far_common.CERTIFICATE,
    ssl_keyfile=far_common.KEY,
    log_level="warning",
)
