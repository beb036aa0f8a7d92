"""Who is believed, and what may leave."""
