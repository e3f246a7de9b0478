"""The calls to actors, in the caller's process (a job, the gateway, another actor): finds, creates and calls them."""
