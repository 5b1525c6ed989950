"""nghttp2's own clients, which say the same thing in many ways: all of it must be answered."""
import re
import subprocess
import tempfile

from common import ARGS, tell, wanted, where

ADDRESS, PORT = where()
URL = f"https://{ADDRESS}:{PORT}" if ARGS.address else f"https://{ARGS.host}"
NAME = ["-H", f":authority: {ARGS.host}"] if ARGS.address else []


def nghttp(*options, path="/", answers=1):
    command = ["nghttp", "-nvy", "-t", "20", *NAME, *options, URL + path]
    said = subprocess.run(command, capture_output=True, text=True, timeout=60).stdout
    got = len(re.findall(r":status: 200", said))
    error = re.findall(r"(?:GOAWAY|RST_STREAM).*?error_code=(?!NO_ERROR)(\w+)", said, re.S)
    return got >= answers, f"{got} answers {' '.join(error)}".strip() if got < answers else "answered"


def h2load(*options, requests=200):
    command = ["h2load", f"-n{requests}", *(["--connect-to", f"{ADDRESS}:{PORT}"] if ARGS.address else []), *options, f"https://{ARGS.host}/"]
    said = subprocess.run(command, capture_output=True, text=True, timeout=120).stdout
    counts = re.search(r"requests: .*?(\d+) succeeded, (\d+) failed, (\d+) errored", said)
    ok = bool(counts) and int(counts[1]) == requests
    return ok, "answered" if ok else f"{counts[0] if counts else said[-200:]}"


file = tempfile.NamedTemporaryFile()
file.write(b"x" * 300_000)
file.flush()

CASES = {
    "nghttp": lambda: nghttp(),
    "nghttp --no-dep": lambda: nghttp("--no-dep"),
    "nghttp --padding=255": lambda: nghttp("--padding=255"),
    "nghttp --continuation": lambda: nghttp("--continuation"),
    "nghttp --multiply=20": lambda: nghttp("--multiply=20", answers=20),
    "nghttp --window-bits=1": lambda: nghttp("--window-bits=1", "--connection-window-bits=16"),
    "nghttp --header-table-size=0": lambda: nghttp("--header-table-size=0"),
    "nghttp --encoder-header-table-size=0": lambda: nghttp("--encoder-header-table-size=0"),
    "nghttp --data": lambda: nghttp(f"--data={file.name}", path="/echo"),
    "nghttp --data --no-content-length": lambda: nghttp(f"--data={file.name}", "--no-content-length", path="/echo"),
    "nghttp --data --trailer": lambda: nghttp(f"--data={file.name}", "--no-content-length", "--trailer", "x-check: ok", path="/echo"),
    "nghttp --data --padding=100": lambda: nghttp(f"--data={file.name}", "--padding=100", path="/echo"),
    "nghttp --weight=256": lambda: nghttp("--weight=256"),
    "nghttp --max-concurrent-streams=1": lambda: nghttp("--max-concurrent-streams=1", "--multiply=5", answers=5),
    "h2load, one connection": lambda: h2load("-c1", "-m1"),
    "h2load, 10 connections of 10 streams": lambda: h2load("-c10", "-m10"),
    "h2load, 1 connection of 100 streams": lambda: h2load("-c1", "-m100"),
    "h2load, the smallest windows": lambda: h2load("-c2", "-m4", "-w1", "-W16"),
    "h2load, bodies": lambda: h2load("-c4", "-m4", f"-d{file.name}", requests=40),
}

for name, run in CASES.items():
    if wanted(name):
        try:
            tell(name, name, *run())
        except (OSError, subprocess.TimeoutExpired) as error:
            tell(name, name, False, type(error).__name__)
