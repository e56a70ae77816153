"""Every family of a library, from tiny random configurations: one walker a library."""
