"""Writes to a database in transactions without end. Runs in a sandbox."""

from __future__ import annotations

import os
import sqlite3

base = sqlite3.connect("/workspace/base.db", isolation_level=None)
base.execute("pragma journal_mode=delete")
base.execute("pragma synchronous=off")
base.execute("create table t (a integer, b blob)")
n = 0
while True:
    n += 1
    base.execute("begin")
    for _ in range(20):
        base.execute("insert into t values (?, ?)", (n, os.urandom(2000)))
    base.execute("commit")
    if n == 5:
        print("ready", flush=True)
    if n % 50 == 0:
        base.execute("delete from t")
