"""The processes of the service's actor (`host`) and of each node's (`node_host`); the rest are plain classes."""
