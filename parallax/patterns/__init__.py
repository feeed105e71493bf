"""Pattern Engine: finds, reads, checks and compiles patterns. Every format becomes Prism."""
