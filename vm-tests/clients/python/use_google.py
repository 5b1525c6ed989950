"""google-api-python-client."""
import sys

import google.oauth2.credentials
import googleapiclient.discovery

drive = googleapiclient.discovery.build("drive", "v3", credentials=google.oauth2.credentials.Credentials(token="placeholder"))

match sys.argv[1]:
    case "read":
        print(drive.files().list().execute())
    case "write":
        print(drive.files().create(body={"name": "juniper"}).execute())
