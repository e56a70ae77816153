"""The model that is explained: its modules, the names of its tables, what it takes and returns."""
