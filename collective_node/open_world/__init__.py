"""The open world: the stream of unknown images, scores, metrics, annotators, and cycles."""
