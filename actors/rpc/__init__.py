"""The callers' process (a job, the gateway, another actor): finds actors and calls them."""
