"""Bytes and texts in the forms that go to another party or to a reader."""
