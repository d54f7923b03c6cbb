"""Runs become one HTML page: tables, charts, photographs, and what the numbers mean and do not show."""
