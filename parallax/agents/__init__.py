"""Who works: agents are started, watched, spoken to and ended here."""
