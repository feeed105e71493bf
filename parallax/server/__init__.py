"""The doors: HTTP, event streams."""
