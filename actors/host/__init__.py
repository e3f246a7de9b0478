"""Every actor's process: what all shells around Ray use, and what a worker loads before it is an actor."""
