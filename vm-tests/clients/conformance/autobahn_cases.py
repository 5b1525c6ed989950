"""Autobahn's own WebSocket cases (the package autobahntestsuite), each over a connection of its own.

The package is written for Python 2 and Twisted; its cases are plain classes over a protocol object, which is ours.
A case is told by what the suite itself makes of it, and by the code that the far side closed with: an intermediary
that changes nothing gives the same of both with it and without it.
"""
import asyncio
import binascii
import builtins
import codecs
import importlib.util
import pathlib
import re
import types

from autobahn_wire import Protocol
from common import ARGS, complain, tell, wanted

PACKAGE = pathlib.Path(importlib.util.find_spec("autobahntestsuite").submodule_search_locations[0])
# Where the suite sends a thousand messages, so many, unless it is asked for the whole.
MESSAGES = 20
BESIDE = 12


class Offer:
    """Autobahn's offer of permessage-deflate, as far as a client's cases go."""

    def __init__(self, acceptNoContextTakeover=True, acceptMaxWindowBits=True, requestNoContextTakeover=False, requestMaxWindowBits=0):
        self.acceptNoContextTakeover, self.acceptMaxWindowBits = acceptNoContextTakeover, acceptMaxWindowBits
        self.requestNoContextTakeover, self.requestMaxWindowBits = requestNoContextTakeover, requestMaxWindowBits

    def words(self):
        text = "permessage-deflate"
        if self.acceptNoContextTakeover:
            text += "; client_no_context_takeover"
        if self.acceptMaxWindowBits:
            text += "; client_max_window_bits"
        if self.requestNoContextTakeover:
            text += "; server_no_context_takeover"
        if self.requestMaxWindowBits:
            text += f"; server_max_window_bits={self.requestMaxWindowBits}"
        return text


class Utf8Validator:
    def reset(self):
        self.decoder = codecs.getincrementaldecoder("utf-8")()

    def validate(self, text):
        try:
            self.decoder.decode(text.encode("latin-1"))
        except UnicodeDecodeError:
            return False, False, 0, 0
        return True, not self.decoder.getstate()[0], 0, 0


def module(name, **members):
    made = types.ModuleType(name)
    made.__dict__.update(members)
    return made


def hexed(text):
    return binascii.b2a_hex(text if isinstance(text, bytes) else text.encode("latin-1")).decode()


STANDINS = {
    "binascii": module("binascii", b2a_hex=hexed, hexlify=hexed),
    "autobahn.websocket.protocol": module("protocol", WebSocketProtocol=Protocol),
    "autobahn.websocket.utf8validator": module("utf8validator", Utf8Validator=Utf8Validator),
    "autobahn.websocket.compress": module(
        "compress", PerMessageDeflateOffer=Offer, PerMessageDeflateOfferAccept=Offer,
        PerMessageDeflateResponse=Offer, PerMessageDeflateResponseAccept=Offer,
    ),
    "pkg_resources": module("pkg_resources", resource_filename=lambda _, path: str(PACKAGE / path)),
}


def made(*arguments):
    """`type` where classes named `object` before their base."""
    if len(arguments) == 1:
        return type(*arguments)
    name, bases, members = arguments
    return type(name, tuple(base for base in bases if base is not object), members)


def load(name):
    """A module of the suite's cases, read as the Python 2 that it is."""
    if name in STANDINS:
        return STANDINS[name]
    source = (PACKAGE / "case" / f"{name}.py").read_bytes().decode("latin-1")
    source = re.sub(r"^(\s*)print (.*)$", r"\1print(\2)", source, flags=re.M)
    source = source.replace("len(self.payload) / self.p.autoFragmentSize", "len(self.payload) // self.p.autoFragmentSize")

    def imported(wanted, scope=None, local=None, names=(), level=0):
        if wanted in STANDINS or (PACKAGE / "case" / f"{wanted}.py").exists():
            return load(wanted)
        return builtins.__import__(wanted, scope, local, names, level)

    STANDINS[name] = one = module(name)
    one.__dict__["__builtins__"] = {
        **vars(builtins), "__import__": imported, "xrange": range, "unichr": chr, "type": made,
    }
    exec(compile(source, name, "exec"), one.__dict__)
    return one


def cases():
    """Each case's class, by its number."""
    base = load("case").Case
    base.compare = lambda _, one, other: one == other
    found = {}
    # Case 9.9 is one that the suite itself leaves out.
    names = sorted(path.stem for path in (PACKAGE / "case").glob("case*_*.py") if path.stem != "case9_9_1")
    for name in names:
        for value in vars(load(name)).values():
            for one in value if isinstance(value, list) else [value]:
                number = re.fullmatch(r"Case(\d+(?:_\d+)+)", getattr(one, "__name__", ""))
                if number and isinstance(one, type):
                    found[number[1].replace("_", ".")] = one
    return sorted(found.items(), key=lambda item: [int(part) for part in item[0].split(".")])


async def run(number, kind, room):
    async with room:
        protocol = Protocol()
        protocol.raw = number.split(".")[0] in ("12", "13")
        if getattr(kind, "COUNT", 0) > MESSAGES and not ARGS.whole:
            kind.COUNT = MESSAGES
        case = kind(protocol)
        await protocol.run(case)
        if protocol.connectionWasOpen:
            told = f"{case.behavior}, close {case.behaviorClose}, code {protocol.remoteCloseCode}"
        else:
            told = f"no WebSocket: {getattr(protocol, 'status', getattr(protocol, 'broke', 'nothing'))}"
        good = ("OK", "NON-STRICT", "INFORMATIONAL")
        ok = protocol.connectionWasOpen and case.behavior in good and case.behaviorClose in good
        title = re.sub(r"<br>.*|\s+", " ", kind.DESCRIPTION.replace("\n", " ")).strip()
        tell(number, title[:120], ok, told)


async def main():
    room = asyncio.Semaphore(BESIDE)
    chosen = [(number, kind) for number, kind in cases() if wanted(number)]
    complain(f"autobahn: {len(chosen)} cases")
    await asyncio.gather(*(run(number, kind, room) for number, kind in chosen))


asyncio.run(main())
