"""The results of a run: models, collection, comparison, statistics, tables, figures, report."""
