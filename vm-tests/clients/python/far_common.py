"""What the far sides share: their arguments, what was sent to them, and the pace of a streamed answer."""
import asyncio
import pathlib
import sys

PORT = int(sys.argv[1])
CERTIFICATE, KEY, LOG, PACE = sys.argv[2:6]
SECRET = sys.argv[6]


def note(what):
    with open(LOG, "a") as log:
        log.write(what + "\n")


async def events():
    """Three events, each once the client has shown the one before."""
    for number in (1, 2, 3):
        for _ in range(800):
            if pathlib.Path(PACE).stat().st_size >= number - 1:
                yield f"event-{number}"
                break
            await asyncio.sleep(0.01)
        else:
            yield f"unacknowledged-event-{number}"
