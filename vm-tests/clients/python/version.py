"""The version of one installed package."""
import importlib.metadata
import sys

print(importlib.metadata.version(sys.argv[1]))
