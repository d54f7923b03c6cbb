"""What every room needs: errors, whole files, tables, keyed randomness and the console."""
