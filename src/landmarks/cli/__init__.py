"""The command line: one module per group of verbs, each of which parses, calls one function and prints."""
