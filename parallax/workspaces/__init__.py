"""Where agents work: git workspaces, checks, integration."""
