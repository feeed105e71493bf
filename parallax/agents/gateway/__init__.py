"""The gateway: the agents' only road to models, to the team tools, and to the network."""
