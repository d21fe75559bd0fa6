"""Parser for frames of the Redis protocol in bytes that arrive in pieces. Performs no I/O."""


def find_frame_end(data, at=0):
    """Returns the index behind the frame at `at`, or None if its end has not arrived."""
    line_end = data.find(b"\r\n", at)
    if line_end < 0:
        return None
    kind, behind_line = data[at : at + 1], line_end + 2
    if kind in b"$=!":
        length = int(data[at + 1 : line_end])
        end = behind_line + (length + 2 if length >= 0 else 0)
        return end if end <= len(data) else None
    if kind not in b"*~>%|":
        return behind_line
    # A map has two frames for each entry; an attribute is followed by the reply that it belongs to.
    count = int(data[at + 1 : line_end])
    if kind in b"%|":
        count = 2 * count + (kind == b"|")
    end = behind_line
    for _ in range(count):
        end = find_frame_end(data, end)
        if end is None:
            return None
    return end


def find_command_end(data):
    """Returns the index behind the first command, or None. An inline command is a line."""
    if data[:1] == b"*":
        return find_frame_end(data)
    line_end = data.find(b"\n")
    return line_end + 1 if line_end >= 0 else None


def parse_words(command):
    """Returns the words of one complete command."""
    if command[:1] != b"*":
        return command.split()
    words, at = [], command.index(b"\r\n") + 2
    while at < len(command):
        line_end = command.index(b"\r\n", at)
        length = int(command[at + 1 : line_end])
        words.append(command[line_end + 2 : line_end + 2 + length])
        at = line_end + 2 + length + 2
    return words


def encode(*words):
    """Returns a command as an array of bulk strings."""
    parts = [b"*%d\r\n" % len(words)]
    parts.extend(b"$%d\r\n%b\r\n" % (len(word), word) for word in words)
    return b"".join(parts)


def list_strings(reply):
    """Yields the simple and bulk strings of a reply, at any depth, in order."""
    at = 0
    while at < len(reply):
        line_end = reply.index(b"\r\n", at)
        kind, line = reply[at : at + 1], reply[at + 1 : line_end]
        at = line_end + 2
        if kind == b"+":
            yield line
        elif kind in b"$=" and int(line) >= 0:
            yield reply[at : at + int(line)]
            at += int(line) + 2
