"""Keys in memory and at rest."""
