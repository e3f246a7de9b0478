"""The parts of the documentation that are made from the code while the site is built, so that they never go stale."""
