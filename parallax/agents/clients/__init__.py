"""How a running agent is spoken to: one module per protocol."""
