"""The service's actor (`host`), each node's actor (`node_host`), and the plain classes that run in their processes."""
