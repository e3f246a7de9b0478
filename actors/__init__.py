"""Sandboxes as Ray actors: the models and errors that travel, the client, the actor, and the node's tools."""
