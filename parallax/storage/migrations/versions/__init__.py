"""One module per schema, `v<number>_<what>.py`."""
