"""The data plane: executions run here, and here results are believed or not."""
