"""The durable state of a sandbox: its state document in the bucket, its ownership, its record on the node.

Runs in the processes of sandboxes, of the service and of the nodes' hosts. Knows neither Ray nor mounts.
"""
