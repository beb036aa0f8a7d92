"""What a run found: models, comparison, statistics, tables, figures, report."""
