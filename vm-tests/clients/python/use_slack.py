"""The official Slack SDK."""
import sys

import slack_sdk

client = slack_sdk.WebClient(token="xoxb-placeholder")

match sys.argv[1]:
    case "read":
        print(client.auth_test()["team"])
    case "write":
        print(client.chat_postMessage(channel="C1", text="juniper")["ts"])
