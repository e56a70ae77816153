"""What one pass knows while it runs.

:mod:`.scope` says which rule is in force, :mod:`.inputs` and :mod:`.layers` what the leaves are,
:mod:`.tracing` which token an entry comes from, and :mod:`.ledger` what constants absorb.
"""
