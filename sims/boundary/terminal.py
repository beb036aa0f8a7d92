"""The operator's terminal, on which a careless operator starts a node: what it shows, what is typed, how it behaves."""

import contextlib
import fcntl
import os
import pty
import struct
import termios


class Terminal:
    """A pseudo-terminal. Used as a context manager: leaving it closes both ends.

    Attributes:
        descriptor: of the end that programs are started on.
    """

    def __init__(self) -> None:
        self._keyboard, self.descriptor = pty.openpty()
        self._usual = termios.tcgetattr(self.descriptor)
        os.set_blocking(self._keyboard, False)

    def __enter__(self) -> "Terminal":
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._keyboard)
        os.close(self.descriptor)

    def set_up(self) -> None:
        """Restore the first state: nothing typed, nothing shown, first size and mode."""
        termios.tcsetattr(self.descriptor, termios.TCSANOW, self._usual)
        termios.tcflush(self.descriptor, termios.TCIOFLUSH)
        fcntl.ioctl(self.descriptor, termios.TIOCSWINSZ, struct.pack("=4H", 24, 80, 0, 0))
        self.shown()

    def type(self, text: str) -> None:
        """Type as the operator does at the keyboard."""
        os.write(self._keyboard, text.encode())

    def shown(self) -> bytes:
        """The output since the last call."""
        found = b""
        with contextlib.suppress(BlockingIOError):
            while piece := os.read(self._keyboard, 4096):
                found += piece
        return found

    def waiting(self) -> bytes:
        """The typed bytes that were not read yet; this call reads them."""
        os.set_blocking(self.descriptor, False)
        try:
            with contextlib.suppress(BlockingIOError):
                return os.read(self.descriptor, 4096)
            return b""
        finally:
            os.set_blocking(self.descriptor, True)

    @property
    def size(self) -> tuple[int, int]:
        """Rows and columns."""
        rows, columns, _, _ = struct.unpack("=4H", fcntl.ioctl(self.descriptor, termios.TIOCGWINSZ, bytes(8)))
        return rows, columns

    @property
    def echoes(self) -> bool:
        """Whether it shows what is typed."""
        return bool(termios.tcgetattr(self.descriptor)[3] & termios.ECHO)
