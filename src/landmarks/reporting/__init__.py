"""Runs become one HTML page: tables, charts, images, and what the numbers mean and do not show."""
