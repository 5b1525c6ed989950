"""boto3: its requests are signed with what it holds, here a placeholder."""
import sys

import boto3

client = boto3.client("dynamodb", region_name="us-east-1", aws_access_key_id="AKIAPLACEHOLDER00000", aws_secret_access_key="placeholder")

match sys.argv[1]:
    case "read":
        print(client.get_item(TableName="things", Key={"id": {"S": "42"}}))
    case "write":
        print(client.put_item(TableName="orders", Item={"note": {"S": "juniper"}}))
