"""What the suites share: their arguments, the way to the far side, and how a case is told."""
import argparse
import json
import ssl
import sys

parser = argparse.ArgumentParser()
parser.add_argument("--host", required=True, help="the name to ask for")
parser.add_argument("--address", help="where it is, instead of what it resolves to")
parser.add_argument("--port", type=int, default=443)
parser.add_argument("--roots", help="trusted roots; the system's, as everybody's, without")
parser.add_argument("--only", default="", help="cases whose numbers begin with this")
parser.add_argument("--whole", action="store_true", help="as many messages as the suite asks for")
ARGS = parser.parse_args()


def tls(*alpn):
    context = ssl.create_default_context(cafile=ARGS.roots)
    if alpn:
        context.set_alpn_protocols(list(alpn))
    return context


def where():
    return ARGS.address or ARGS.host, ARGS.port


def wanted(case):
    return case.startswith(ARGS.only)


def tell(case, title, ok, seen):
    """One case: whether it went as the suite asks, and what was seen, in words that are the same in every good run."""
    print(json.dumps({"case": case, "title": title, "ok": bool(ok), "seen": str(seen)[:300]}), flush=True)


def complain(text):
    print(text, file=sys.stderr, flush=True)
