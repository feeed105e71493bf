"""Where agent processes run."""
