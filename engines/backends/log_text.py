"""What an instance has written, cut into lines: an engine may write anything, a megabyte without a line's end included."""

BEGINS_EARLIER = "[beginning left out] "  # before a line of which only the end was read


def last_lines(written: bytes, tail: int, *, is_cut: bool = False) -> list[str]:
    """The last `tail` lines, oldest first. A line ends with a line feed, or a carriage return and a line feed.

    No other character ends a line: a terminal goes back at a bare carriage return, but stays in its line. `is_cut` says that
    `written` begins in the middle of a line. The line then begins with BEGINS_EARLIER.
    """
    # rsplit, because a cut at every line's end would make millions of lines only to throw them away
    lines = written.removesuffix(b"\n").rsplit(b"\n", tail) if written and tail > 0 else []
    begin = BEGINS_EARLIER if is_cut and len(lines) <= tail else ""
    texts = [line.removesuffix(b"\r").decode(errors="replace") for line in lines[-tail:]]
    return [begin + texts[0], *texts[1:]] if texts else []
