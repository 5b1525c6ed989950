"""The messages of grpc.testing.TestService (grpc's `messages.proto`), as bytes: they are few, and need no compiler."""


def varint(value):
    value &= (1 << 64) - 1
    out = bytearray()
    while value > 127:
        out.append(value & 127 | 128)
        value >>= 7
    out.append(value)
    return bytes(out)


def pack(**fields):
    """Fields as `f1=..`: numbers, text, bytes, and lists of them."""
    out = b""
    for name, values in fields.items():
        number = int(name[1:])
        for value in values if isinstance(values, list) else [values]:
            if isinstance(value, int):
                out += varint(number << 3) + varint(value)
            else:
                data = value.encode() if isinstance(value, str) else value
                out += varint(number << 3 | 2) + varint(len(data)) + data
    return out


def unpack(data):
    """Every field's values, by its number."""
    at, fields = 0, {}

    def number():
        nonlocal at
        value = shift = 0
        while True:
            octet = data[at]
            at += 1
            value |= (octet & 127) << shift
            shift += 7
            if octet < 128:
                return value

    while at < len(data):
        key = number()
        value = number()
        if key & 7 == 2:
            value, at = data[at : at + value], at + value
        fields.setdefault(key >> 3, []).append(value)
    return fields


def payload(size):
    return pack(f2=bytes(size))


def body(message, field):
    """The length of a payload in a message."""
    inner = unpack(unpack(message).get(field, [b""])[0])
    return len(inner.get(2, [b""])[0])
