"""The learngene out of the collective's network: criterion, similarity, condensing."""
