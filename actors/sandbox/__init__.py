"""The process of one sandbox's actor. `host` is the shell around Ray; the rest are plain classes."""
