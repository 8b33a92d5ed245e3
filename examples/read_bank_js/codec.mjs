// Section 11: from codes back to keys and values. All arithmetic is float32, which Math.fround gives after
// each operation on doubles: a double has so many digits that rounding twice does no harm for + - * /.

import { CorruptError } from "./errors.mjs";
import { bfloat16, half } from "./floats.mjs";

const round = Math.fround;
const MAX_DIMENSIONS = 4096;
const NUMBER = "([1-9][0-9]*)";
const TRANSFORM = `(?:(?:OPQ${NUMBER}_|PCA|RR)${NUMBER},)?`;
const FINE = `(?:PQ${NUMBER}x${NUMBER}|SQ([468])|(SQfp16))`;
const SPEC = new RegExp(`^${TRANSFORM}(?:Residual2x${NUMBER},)?${FINE}$`);

/** What a codec string says of vectors of d dimensions; B is the bytes of a code. */
export function parseSpec(text, d) {
  const refuse = (why) => { throw new CorruptError(`the codec ${JSON.stringify(text)} ${why}`); };
  if (d > MAX_DIMENSIONS) refuse(`is for ${d} dimensions, format 1 has ${MAX_DIMENSIONS} at most`);
  if (text === "none") return { none: true, bytes: 2 * d };
  const found = SPEC.exec(text) ?? refuse("is unknown to this program");
  const numbers = found.slice(1, 7).map((group) => group && Number(group));
  const [opq, transform, firstBits, parts, partBits, fineBits] = numbers;
  const D = transform ?? d;
  if (D > d || firstBits > 16 || partBits > 16) refuse(`is impossible for ${d} dimensions`);
  if (D % (opq ?? 1) || D % (parts ?? 1) || (firstBits && D % 2)) refuse(`does not divide ${D} dimensions`);
  const scalarBits = found[7] ? 16 : fineBits;
  const firstBytes = firstBits ? Math.ceil((2 * firstBits) / 8) : 0;
  const bytes = firstBytes + Math.ceil((parts ? parts * partBits : D * scalarBits) / 8);
  return { D, transform, firstBits, firstBytes, parts, partBits, scalarBits, bytes };
}

/** How many codebooks there are, and which one the vectors of a kind (0 key, 1 value) and head use. */
function codebooks(scope, heads) {
  const layers = [...new Set(heads.map(([layer]) => layer))];
  switch (scope) {
    case "all": return { count: 1, number: () => 0 };
    case "kind": return { count: 2, number: (kind) => kind };
    case "layer":
      return { count: 2 * layers.length, number: (kind, head) => 2 * layers.indexOf(heads[head][0]) + kind };
    case "head": return { count: 2 * heads.length, number: (kind, head) => 2 * head + kind };
    default: throw new CorruptError(`the codec scope ${JSON.stringify(scope)} is unknown to this program`);
  }
}

/** The arrays a spec calls for, each with its shape. */
function expectedShapes(spec, d, headCount, G) {
  if (spec.none) return {};
  const { D, firstBits, parts, partBits, scalarBits } = spec;
  return {
    mean: [2, headCount, d],
    scale: [2, headCount],
    ...(spec.transform && { transform: [G, D, d], transform_bias: [G, D] }),
    ...(firstBits && { first_level: [G, 2, 2 ** firstBits, D / 2] }),
    ...(parts && { product: [G, parts, 2 ** partBits, D / parts] }),
    ...(scalarBits < 16 && { scalar_range: [G, 2, D] }), // SQfp16 has none
  };
}

/** The float32 values of the named arrays ({name: {dtype, shape, data}}), which must have these shapes. */
function checkArrays(arrays, shapes) {
  const names = Object.keys(shapes).sort().join();
  if (Object.keys(arrays).sort().join() !== names) {
    throw new CorruptError(`the codec's arrays are ${Object.keys(arrays)}, expected ${names || "none"}`);
  }
  const floats = {};
  for (const [name, { dtype, shape, data }] of Object.entries(arrays)) {
    if (dtype !== "float32" || shape.join() !== shapes[name].join()) {
      throw new CorruptError(`codec array ${name}: ${dtype} [${shape}], expected float32 [${shapes[name]}]`);
    }
    const view = new DataView(data.buffer, data.byteOffset, data.byteLength);
    const values = Float32Array.from({ length: data.byteLength / 4 }, (_, i) => view.getFloat32(4 * i, true));
    if (!values.every(Number.isFinite)) throw new CorruptError(`codec array ${name}: a number is not finite`);
    floats[name] = values;
  }
  if (floats.scale?.some((scale) => scale <= 0)) throw new CorruptError("codec array scale: is not positive");
  return floats;
}

/** Number j of those that are packed in `bytes` with `bits` bits each, least significant bit first. */
function packed(bytes, bits, j) {
  let value = 0;
  for (let bit = 0; bit < bits; bit++) {
    const at = j * bits + bit;
    value |= ((bytes[at >> 3] >> (at & 7)) & 1) << bit;
  }
  return value;
}

const uint16 = (bytes, i) => bytes[2 * i] | (bytes[2 * i + 1] << 8);

export class Codec {
  /** `settings` is the manifest's `codec`, `arrays` the named arrays of the codec file. */
  constructor(settings, arrays) {
    const { spec, scope, heads, head_dim: d, bytes_per_vector: bytes } = settings;
    const missing = ["scope", "heads", "head_dim", "slots"].filter((key) => !(key in settings));
    if (missing.length > 0) throw new CorruptError(`the manifest's codec lacks ${missing.join(", ")}`);
    this.d = d;
    this.spec = parseSpec(spec, d);
    if (this.spec.bytes !== bytes) {
      throw new CorruptError(`a code of ${spec} has ${this.spec.bytes} bytes, the manifest says ${bytes}`);
    }
    this.headCount = heads.length;
    this.books = codebooks(scope, heads);
    this.arrays = checkArrays(arrays, expectedShapes(this.spec, d, heads.length, this.books.count));
  }

  /** The key (kind 0) or value (kind 1) that `code` stands for in memory head number `head`: d float32. */
  decode(kind, head, code) {
    if (this.spec.none) return Float32Array.from({ length: this.d }, (_, i) => bfloat16(uint16(code, i)));
    const g = this.books.number(kind, head);
    const y = new Float32Array(this.spec.D); // storing a sum in it rounds the sum to float32
    this.#addFirstLevel(y, g, code);
    this.#addFine(y, g, code.subarray(this.spec.firstBytes));
    const x = this.spec.transform ? this.#transformBack(y, g) : y;
    const { mean, scale } = this.arrays;
    const at = kind * this.headCount + head;
    for (let u = 0; u < this.d; u++) x[u] = round(x[u] * scale[at]) + mean[at * this.d + u];
    return x;
  }

  #addFirstLevel(y, g, code) {
    const { firstBits, D } = this.spec;
    if (!firstBits) return;
    for (const side of [0, 1]) {
      const at = ((2 * g + side) * 2 ** firstBits + packed(code, firstBits, side)) * (D / 2);
      for (let t = 0; t < D / 2; t++) y[side * (D / 2) + t] += this.arrays.first_level[at + t];
    }
  }

  #addFine(y, g, code) {
    const { D, parts, partBits, scalarBits } = this.spec;
    if (parts) {
      const width = D / parts;
      for (let part = 0; part < parts; part++) {
        const centroid = (g * parts + part) * 2 ** partBits + packed(code, partBits, part);
        for (let t = 0; t < width; t++) y[part * width + t] += this.arrays.product[centroid * width + t];
      }
    } else if (scalarBits < 16) {
      const range = this.arrays.scalar_range.subarray(2 * g * D, 2 * (g + 1) * D);
      for (let t = 0; t < D; t++) {
        const level = round((packed(code, scalarBits, t) + 0.5) / (2 ** scalarBits - 1));
        y[t] += round(range[t] + round(level * range[D + t]));
      }
    } else {
      for (let t = 0; t < D; t++) y[t] += half(uint16(code, t));
    }
  }

  /** z = Aᵀ(y − β); the rows of A are orthonormal, so this is the least squares answer to y = A z + β. */
  #transformBack(y, g) {
    const { d, spec: { D }, arrays: { transform, transform_bias: bias } } = this;
    const z = new Float32Array(d);
    for (let t = 0; t < D; t++) {
      const centred = round(y[t] - bias[g * D + t]);
      for (let u = 0; u < d; u++) z[u] += round(transform[(g * D + t) * d + u] * centred);
    }
    return z;
  }
}
