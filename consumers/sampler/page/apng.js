// An animated PNG of PNG files of one size: https://www.w3.org/TR/png-3/#apng-frame-based-animation

const TABLE = Uint32Array.from({ length: 256 }, (_, n) => {
  for (let k = 0; k < 8; k++) n = n & 1 ? 0xedb88320 ^ (n >>> 1) : n >>> 1;
  return n >>> 0;
});

function crc(bytes) {
  let c = 0xffffffff;
  for (const byte of bytes) c = TABLE[(c ^ byte) & 255] ^ (c >>> 8);
  return (c ^ 0xffffffff) >>> 0;
}

function chunk(type, data) {
  const bytes = new Uint8Array(12 + data.length);
  const view = new DataView(bytes.buffer);
  view.setUint32(0, data.length);
  bytes.set(
    [...type].map((c) => c.charCodeAt(0)),
    4,
  );
  bytes.set(data, 8);
  view.setUint32(8 + data.length, crc(bytes.subarray(4, 8 + data.length)));
  return bytes;
}

/** The chunks of a PNG file: [type, data]. */
function* chunks(file) {
  const view = new DataView(file.buffer, file.byteOffset);
  for (let at = 8; at < file.length;) {
    const size = view.getUint32(at);
    yield [String.fromCharCode(...file.subarray(at + 4, at + 8)), file.subarray(at + 8, at + 8 + size)];
    at += 12 + size;
  }
}

const words = (...values) => {
  const view = new DataView(new ArrayBuffer(4 * values.length));
  values.forEach((value, i) => view.setUint32(4 * i, value));
  return new Uint8Array(view.buffer);
};

/** Frame after frame, `ms` each and `last` for the last one, for ever. */
export function animated(files, ms, last) {
  const found = files.map((file) => [...chunks(file)]);
  const [, header] = found[0].find(([type]) => type === "IHDR");
  const size = new DataView(header.buffer, header.byteOffset);
  const parts = [files[0].subarray(0, 8), chunk("IHDR", header), chunk("acTL", words(files.length, 0))];
  let sequence = 0;
  found.forEach((frame, i) => {
    const control = new Uint8Array(26);
    control.set(words(sequence++, size.getUint32(0), size.getUint32(4)));
    new DataView(control.buffer).setUint16(20, i === files.length - 1 ? last : ms);
    new DataView(control.buffer).setUint16(22, 1000);
    parts.push(chunk("fcTL", control));
    for (const [, data] of frame.filter(([type]) => type === "IDAT")) {
      parts.push(i === 0 ? chunk("IDAT", data) : chunk("fdAT", new Uint8Array([...words(sequence++), ...data])));
    }
  });
  parts.push(chunk("IEND", new Uint8Array()));
  return new Blob(parts, { type: "image/png" });
}
