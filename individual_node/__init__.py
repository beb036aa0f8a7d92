"""The individual's side: verify a learngene, inherit it, adapt it to a few images of one's own."""
