"""The stream of unknown images: scores, metrics, annotators."""
