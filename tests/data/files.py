"""Picture files made byte by byte, of kinds that Pillow reads and does not write."""
import struct
import zlib

import numpy as np

KINDS = {"grey": 0, "rgb": 2, "palette": 3, "grey alpha": 4, "rgb alpha": 6}


def png(samples, depth=8, kind="grey", **chunks):
    """The bytes of a PNG: samples [height, width] or [height, width, channels], each of `depth`
    bits. Chunks, such as tRNS=b"…", stand before the picture.
    """
    samples = np.asarray(samples)
    height, width = samples.shape[:2]
    flat = samples.reshape(height, -1)
    if depth == 16:
        rows = [row.astype(">u2").tobytes() for row in flat]
    else:
        bits = (flat[..., None] >> np.arange(depth)[::-1] & 1).reshape(height, -1)
        rows = [np.packbits(row.astype(np.uint8)).tobytes() for row in bits]
    parts = {"IHDR": struct.pack(">IIBBBBB", width, height, depth, KINDS[kind], 0, 0, 0), **chunks,
             "IDAT": zlib.compress(b"".join(b"\0" + row for row in rows)), "IEND": b""}
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + name.encode() + data
        + struct.pack(">I", zlib.crc32(name.encode() + data)) for name, data in parts.items())


def matrix_profile(gamma, red, green, blue, space=b"RGB "):
    """An ICC profile: channels to the power of gamma, their XYZ (D50) given; or, for the space
    b"GRAY", of a grey alone.
    """
    def xyz(values):
        return b"XYZ \0\0\0\0" + struct.pack(">3i", *(round(v * 65536) for v in values))

    curve = b"curv\0\0\0\0" + struct.pack(">IH", 1, round(gamma * 256)) + b"\0\0"
    text = b"desc\0\0\0\0" + struct.pack(">I", 5) + b"test\0" + bytes(12 + 67)
    tags = {b"desc": text, b"cprt": b"text\0\0\0\0none\0\0\0\0", b"wtpt": xyz((0.9642, 1, 0.8249))}
    if space == b"GRAY":
        tags[b"kTRC"] = curve
    else:
        tags |= {b"rXYZ": xyz(red), b"gXYZ": xyz(green), b"bXYZ": xyz(blue),
                 b"rTRC": curve, b"gTRC": curve, b"bTRC": curve}
    table, body, at = struct.pack(">I", len(tags)), b"", 128 + 4 + 12 * len(tags)
    for name, data in tags.items():
        table += name + struct.pack(">II", at + len(body), len(data))
        body += data + bytes(-len(data) % 4)
    head = struct.pack(">I4sI4s4s4s", at + len(body), b"\0\0\0\0", 0x02100000, b"mntr", space,
                       b"XYZ ")
    head += bytes(12) + b"acsp" + bytes(28) + struct.pack(">3i", 63190, 65536, 54061)
    return head.ljust(128, b"\0") + table + body


# Of sRGB's red, green and blue, adapted to D50 as its profile has them.
SRGB_XYZ = ((0.4361, 0.2225, 0.0139), (0.3851, 0.7169, 0.0971), (0.1431, 0.0606, 0.7141))
# Of Adobe RGB (1998), as its specification has them.
ADOBE_XYZ = ((0.60974, 0.31111, 0.01947), (0.20528, 0.62567, 0.06087), (0.14919, 0.06322, 0.74457))
