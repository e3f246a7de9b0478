"""Backups in R2 or any S3: keys, metadata, the bucket's adapter, and transfers through presigned URLs."""
