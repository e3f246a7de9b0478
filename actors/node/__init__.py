"""This node's kernel: namespaces, cgroups, squashfs, mounts. Knows nothing of Ray or S3."""
