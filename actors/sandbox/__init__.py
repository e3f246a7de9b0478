"""The modules of one sandbox. They run in the process of its actor.

`host` is the Ray shell; the rest are plain classes, which `facade` composes. While a node is drained, the process of
its `NodeHost` also runs them, for the sandboxes that sleep there.

    what it does              modules
    commands and files        work; commands, command_errors, transfers, tar_process, tar_excludes
    backup, restore, forget   mailbox; protocols, backup, restore, fetch, operations, steps
    wake, close               residency; wake_steps, teardown, node_resources, sandbox_lock
    sleep, destroy            sleep, sleep_backups; destruction
    restored directories      restored_directories; restored_record, overlays, staging
    recovery, and losses      sandbox_recovery; recovery, mending, unsaved
    keeping the lanes apart   tree_lock, quiescence, admission, activity
"""
