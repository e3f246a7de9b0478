"""The whole service on one machine, started by one command: Ray, the S3 server, the service and the gateway."""
