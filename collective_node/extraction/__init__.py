"""Extraction of the learngene from the collective's network: criterion, similarity, condensing."""
