"""The command line `holdfast`. Modules here import Ray inside functions, so that `--help` answers at once."""
