"""The command line of m3build: one thin module a command."""
