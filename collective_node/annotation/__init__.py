"""The page on which an annotator names unknown images."""
