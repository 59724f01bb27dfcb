"""How a plan prints."""
