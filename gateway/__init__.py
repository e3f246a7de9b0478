"""The REST gateway and the command line: every way into the service from outside the cluster."""
