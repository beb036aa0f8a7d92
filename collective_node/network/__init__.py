"""The expandable network, its growth, and growth schedules."""
