// Small floating-point formats, and float32 as exact text.

/** The value of an IEEE 754 binary16: 1 sign bit, 5 exponent bits, 10 fraction bits. */
export function half(bits) {
  const sign = bits & 0x8000 ? -1 : 1;
  const exponent = (bits >> 10) & 0x1f;
  const fraction = bits & 0x3ff;
  if (exponent === 0x1f) return fraction ? NaN : sign * Infinity;
  if (exponent === 0) return sign * fraction * 2 ** -24;
  return sign * (1 + fraction / 1024) * 2 ** (exponent - 15);
}

const scratch = new DataView(new ArrayBuffer(4));

/** The value of a bfloat16: the upper half of a float32. */
export function bfloat16(bits) {
  scratch.setUint32(0, bits << 16);
  return scratch.getFloat32(0);
}

/** The bits of float32 values, 8 hex digits each: exact for every value, also -0, infinities and NaN. */
export function float32Hex(values) {
  const hex = (value) => {
    scratch.setFloat32(0, value);
    return scratch.getUint32(0).toString(16).padStart(8, "0");
  };
  return Array.from(values, hex).join("");
}
