"""One small pure module per CLI: how it is launched, its dialect, its quirks."""
