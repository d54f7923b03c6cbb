"""`python -m landmarks` is the program `landmarks`."""

from landmarks.cli.main import main

main()
