"""PyGithub."""
import sys

import github

client = github.Github(auth=github.Auth.Token("placeholder"), timeout=60)
repository = client.get_repo("acme/site")

match sys.argv[1]:
    case "read":
        print(repository.description)
    case "write":
        print(repository.create_issue("juniper").title)
