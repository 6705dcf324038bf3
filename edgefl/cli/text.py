"""Text from elsewhere, made safe for a terminal and a log."""


def printable(text: str) -> str:
    """The same text with everything that is no visible character escaped: no second line, no terminal commands.

    What a device says about itself is printed for an operator; it must not be able to move his cursor.
    """
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)
