"""The truth about a sandbox that outlives its process: its document in the bucket, its owner, its record on the node.

Runs in a sandbox's process, and in the service's. Knows neither Ray nor mounts.
"""
