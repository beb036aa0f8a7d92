"""Text in files that people write or save again: UTF-8, or UTF-16 and UTF-32 with their mark, as some editors do."""

import codecs

# Of those that begin alike, the longer mark first.
_MARKS = (
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)


def is_marked(data: bytes) -> bool:
    """Whether a byte-order mark stands at the beginning (The Unicode Standard, section 23.8)."""
    return data.startswith(tuple(mark for mark, _ in _MARKS))


def text_of(data: bytes) -> str:
    """The text of a file, without its byte-order mark.

    Raises:
        ValueError: it is in another encoding; the error says which, as far as it can be known, and what to do.
    """
    encoding = next((encoding for mark, encoding in _MARKS if data.startswith(mark)), "utf-8")
    if encoding == "utf-8" and b"\0" in data:
        raise ValueError("it is UTF-16 text without its mark, or no text at all; save it as UTF-8")
    try:
        return data.decode(encoding)
    except UnicodeDecodeError as error:
        if encoding != "utf-8":
            raise ValueError(f"it begins as {encoding.upper()} text and goes on as none; save it as UTF-8") from None
        line = data.count(b"\n", 0, error.start) + 1
        found = f"the byte 0x{data[error.start]:02x} in line {line}"
        raise ValueError(f"it is no UTF-8 text ({found}); save it as UTF-8") from None
