"""Tests of texts and bytes in the forms in which they cross a border."""
