"""The benchmark: Holdfast beside the pipeline of Cloudflare's SDK, restic, tar, and the limits of the machine."""
