"""The reproduction of the study, and the demonstration on a made-up archive."""
