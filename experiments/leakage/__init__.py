"""How much a random split flatters."""
