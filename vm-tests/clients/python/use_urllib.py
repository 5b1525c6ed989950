"""Python's own urllib."""
import json
import sys
import urllib.error
import urllib.request

API = "https://api.clients.example"
HEADERS = {"Authorization": "Bearer placeholder", "Content-Type": "application/json"}


def call(path, data=None):
    try:
        return urllib.request.urlopen(urllib.request.Request(API + path, data, HEADERS), timeout=60)
    except urllib.error.HTTPError as error:
        print(error.code, error.read().decode())
        sys.exit(1)


match sys.argv[1]:
    case "read":
        print(call("/v1/things/42").read().decode())
    case "write":
        print(call("/v1/orders", json.dumps({"note": "juniper"}).encode()).read().decode())
    case "stream":
        for line in call("/v1/events"):
            print(line.decode().strip(), flush=True)
