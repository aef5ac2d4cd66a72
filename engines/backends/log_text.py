"""What an instance has written, cut into lines: an engine may write anything, a megabyte without a line's end included."""


def last_lines(written: bytes, tail: int) -> list[str]:
    """The last `tail` lines, oldest first. Lines end with a line feed, a carriage return or both, and with nothing else."""
    text = written.replace(b"\r\n", b"\n").replace(b"\r", b"\n")
    # rsplit, because a cut at every line's end would make millions of lines only to throw them away
    lines = text.removesuffix(b"\n").rsplit(b"\n", tail)[-tail:] if text and tail > 0 else []
    return [line.decode(errors="replace") for line in lines]
