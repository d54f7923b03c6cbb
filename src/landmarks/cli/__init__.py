"""The command line: one small module per verb, which parses, calls one function and prints."""
