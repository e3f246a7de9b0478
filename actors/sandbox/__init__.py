"""The modules that run in the process of a sandbox's actor. `host` is the Ray shell; the rest are plain classes."""
