"""What each command takes: nothing here needs torch, so that ``--help`` answers at once.

A command has a module here with ``DESCRIPTION``, ``EXAMPLES`` and ``add_arguments(parser)``, and
one of the same name beside this folder with ``run(parser, arguments)``, which does the work with
what the parser found, whose error messages it can use, and gives the exit status.
"""
