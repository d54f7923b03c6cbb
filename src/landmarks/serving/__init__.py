"""Serving: a recogniser behind HTTP, and the web page that asks it or answers by itself."""
