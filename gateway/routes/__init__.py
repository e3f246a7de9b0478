"""The routes, one module per concern. Each only translates between HTTP and the cluster's calls."""
