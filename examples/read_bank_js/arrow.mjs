// Section 4: just enough of Arrow's columnar format (https://arrow.apache.org/docs/format/Columnar.html) for
// the tables of a bank: flat and nested columns without nulls, dictionaries or compression.
//
// An encapsulated message is FF FF FF FF, the int32 length of the metadata, the metadata (a FlatBuffers
// `Message` of Arrow's Message.fbs and Schema.fbs, padded to 8 bytes), then the body: the columns' buffers.
//
// A schema is never interpreted: it is compared with the columns that the format demands, and these then say
// how to read a batch.

import { CorruptError, utf8 as decodeUtf8 } from "./errors.mjs";
import { half } from "./floats.mjs";

const METADATA_V5 = 4; // Arrow counts from V1 = 0
const SCHEMA_HEADER = 1;
const RECORD_BATCH_HEADER = 3;
const MAGIC = Buffer.from("ARROW1\0\0", "latin1");

const demand = (condition, problem) => { if (!condition) throw new CorruptError(problem); };

// ---- types: the tag in Arrow's `Type` union, and what the type's table must hold as [field, bytes, value]

const type = (tag, parameters = [], children = []) => ({ tag, parameters, children });
const integer = (bits, signed) => ({ ...type(2, [[0, 4, bits], [1, 1, signed]]), width: bits / 8, signed });
export const uint = (bits) => integer(bits, 0);
export const int64 = integer(64, 1);
export const float16 = { ...type(3, [[0, 2, 0]]), width: 2 };
export const utf8 = type(5);
export const largeBinary = type(19);
export const list = (item) => type(12, [], [["item", item]]);
export const struct = (fields) => type(13, [], Object.entries(fields));
export const fixedBinary = (width) => ({ ...type(15, [[0, 4, width]]), width });
export const fixedList = (item, size) => ({ ...type(16, [[0, 4, size]], [["item", item]]), size });

// ---- FlatBuffers

/**
 * A FlatBuffers table: an int32 at its start leads back to the vtable, which holds for each field the offset
 * of its value from the table's start, 0 (or nothing) where the field has its default. All defaults that
 * matter here are 0.
 */
class FlatTable {
  constructor(view, at) {
    this.view = view;
    this.at = at;
    this.vtable = at - view.getInt32(at, true);
    this.vtableBytes = view.getUint16(this.vtable, true);
  }

  static root(bytes) {
    const view = viewOf(bytes);
    return new FlatTable(view, view.getUint32(0, true));
  }

  #field(index) {
    const entry = 4 + 2 * index; // after the vtable's size and the table's size
    const offset = entry < this.vtableBytes ? this.view.getUint16(this.vtable + entry, true) : 0;
    return offset && this.at + offset;
  }

  has(index) { return this.#field(index) !== 0; }

  scalar(index, bytes) {
    const at = this.#field(index);
    return at && readInteger(this.view, at, bytes, 1);
  }

  #target(index) {
    const at = this.#field(index);
    demand(at, "Arrow metadata lacks a field");
    return at + this.view.getUint32(at, true);
  }

  table(index) { return new FlatTable(this.view, this.#target(index)); }

  /** [address of the first item, number of items] of a vector; a vector that is left out is empty. */
  vector(index) {
    if (!this.has(index)) return [0, 0];
    const at = this.#target(index);
    return [at + 4, this.view.getUint32(at, true)];
  }

  tables(index) {
    const [first, count] = this.vector(index);
    const item = (i) => first + 4 * i + this.view.getUint32(first + 4 * i, true);
    return Array.from({ length: count }, (_, i) => new FlatTable(this.view, item(i)));
  }

  string(index) {
    const [first, bytes] = this.vector(index);
    demand(first + bytes <= this.view.byteLength, "Arrow metadata has a string outside of it");
    return decodeUtf8(new Uint8Array(this.view.buffer, this.view.byteOffset + first, bytes));
  }

  /** Vector of structs of two int64. */
  pairs(index) {
    const [first, count] = this.vector(index);
    const number = (at) => readInteger(this.view, at, 8, 1);
    return Array.from({ length: count }, (_, i) => [number(first + 16 * i), number(first + 16 * i + 8)]);
  }
}

const viewOf = (bytes) => new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);

/** A little-endian integer of 1, 2, 4 or 8 bytes as a Number. */
function readInteger(view, at, bytes, signed) {
  if (bytes === 1) return signed ? view.getInt8(at) : view.getUint8(at);
  if (bytes === 2) return signed ? view.getInt16(at, true) : view.getUint16(at, true);
  if (bytes === 4) return signed ? view.getInt32(at, true) : view.getUint32(at, true);
  const value = Number(signed ? view.getBigInt64(at, true) : view.getBigUint64(at, true));
  demand(Number.isSafeInteger(value), "an integer above 2^53 - 1");
  return value;
}

// ---- messages

/** {header, body} of the one encapsulated message that `bytes` are from the first to the last. */
function readMessage(bytes, headerType) {
  const view = viewOf(bytes);
  demand(view.getUint32(0, true) === 0xffffffff, "no Arrow message starts here");
  const metadataBytes = view.getInt32(4, true);
  demand(metadataBytes > 0 && 8 + metadataBytes <= bytes.length, "Arrow metadata of impossible size");
  const message = FlatTable.root(bytes.subarray(8, 8 + metadataBytes));
  const body = bytes.subarray(8 + metadataBytes);
  demand(message.scalar(0, 2) === METADATA_V5, "Arrow metadata is not version 5");
  demand(message.scalar(1, 1) === headerType, "an Arrow message of another kind");
  demand(message.scalar(3, 8) === body.length, "an Arrow message of another size");
  return { header: message.table(2), body };
}

/** Checks that a file's head holds exactly these columns ({name: type}). */
export function checkHead(bytes, columns) {
  demand(MAGIC.equals(bytes.subarray(0, MAGIC.length)), "this is no Arrow file");
  const schema = readMessage(bytes.subarray(MAGIC.length), SCHEMA_HEADER).header;
  demand(schema.scalar(0, 2) === 0, "the Arrow schema is big-endian");
  demand(!hasItems(schema, 2), "the Arrow schema has metadata");
  checkFields(schema.tables(1), Object.entries(columns), "");
}

const hasItems = (table, index) => table.vector(index)[1] > 0;

function checkFields(fields, expected, path) {
  const names = fields.map((field) => field.string(0));
  const wanted = expected.map(([name]) => name);
  demand(names.join() === wanted.join(), `the columns${path} are ${names}, expected ${wanted}`);
  for (const [i, [name, { tag, parameters, children }]] of expected.entries()) {
    const field = fields[i];
    const where = `${path} ${name}`;
    demand(field.scalar(1, 1) === 0, `the column${where} is nullable`);
    demand(!field.has(4), `the column${where} has a dictionary`);
    demand(!hasItems(field, 6), `the column${where} has metadata`);
    const same = field.scalar(2, 1) === tag
      && parameters.every(([slot, bytes, value]) => field.table(3).scalar(slot, bytes) === value);
    demand(same, `the column${where} has another type`);
    checkFields(field.tables(5), children, where);
  }
}

/** The columns of a record batch message as {name: row => value}. */
export function readBatch(bytes, columns, rows) {
  const { header, body } = readMessage(bytes, RECORD_BATCH_HEADER);
  demand(header.scalar(0, 8) === rows, `a record batch has ${header.scalar(0, 8)} rows, expected ${rows}`);
  demand(!header.has(3), "a record batch is compressed");
  const batch = new BatchParts(header, body);
  const read = Object.entries(columns).map(([name, type]) => [name, readColumn(type, rows, batch)]);
  demand(batch.nodes.length === 0 && batch.buffers.length === 0, "a record batch has too many columns");
  return Object.fromEntries(read);
}

/** The nodes (one a column or child, depth first) and buffers of a record batch, handed out in order. */
class BatchParts {
  constructor(header, body) {
    this.nodes = header.pairs(1); // [length, nulls]
    this.buffers = header.pairs(2); // [offset in the body, bytes]
    this.body = body;
  }

  nextLength() {
    demand(this.nodes.length > 0, "a record batch lacks columns");
    return this.nodes[0][0];
  }

  node(rows) {
    demand(this.nextLength() === rows, `a column has ${this.nextLength()} rows, expected ${rows}`);
    demand(this.nodes.shift()[1] === 0, "a column has nulls");
  }

  buffer(atLeast = 0) {
    demand(this.buffers.length > 0, "a record batch lacks buffers");
    const [offset, bytes] = this.buffers.shift();
    const inside = offset >= 0 && bytes >= 0 && offset + bytes <= this.body.length;
    demand(inside, "a buffer lies outside its batch");
    demand(bytes >= atLeast, "a buffer is too short for its rows");
    return this.body.subarray(offset, offset + bytes);
  }

  /** rows + 1 offsets, checked never to fall; what they point into is for the caller to check. */
  offsets(rows, width) {
    const count = rows === 0 ? 0 : rows + 1; // Arrow lets a column of no rows have no offsets
    const view = viewOf(this.buffer(count * width));
    const offsets = Array.from({ length: count }, (_, i) => readInteger(view, i * width, width, 1));
    demand(offsets.every((offset, i) => (i === 0 ? 0 : offsets[i - 1]) <= offset), "offsets fall");
    return offsets;
  }
}

function readColumn(type, rows, batch) {
  batch.node(rows);
  batch.buffer(); // the validity bitmap, empty or all ones: the node has no nulls
  switch (type.tag) {
    case 2: { // integer
      const view = viewOf(batch.buffer(rows * type.width));
      return (row) => readInteger(view, row * type.width, type.width, type.signed);
    }
    case 3: { // floating point, of which the format only has float16
      const view = viewOf(batch.buffer(rows * type.width));
      return (row) => half(view.getUint16(row * type.width, true));
    }
    case 5: // utf8
    case 19: { // large_binary
      const offsets = batch.offsets(rows, type.tag === 5 ? 4 : 8);
      const data = batch.buffer(offsets.at(-1) ?? 0);
      const bytes = (row) => data.subarray(offsets[row], offsets[row + 1]);
      return type.tag === 5 ? (row) => decodeUtf8(bytes(row)) : bytes;
    }
    case 12: { // list
      const offsets = batch.offsets(rows, 4);
      const items = batch.nextLength();
      demand((offsets.at(-1) ?? 0) <= items, "offsets point behind a list's items");
      const item = readColumn(type.children[0][1], items, batch);
      const length = (row) => offsets[row + 1] - offsets[row];
      return (row) => Array.from({ length: length(row) }, (_, i) => item(offsets[row] + i));
    }
    case 13: { // struct
      const members = type.children.map(([name, child]) => [name, readColumn(child, rows, batch)]);
      return (row) => Object.fromEntries(members.map(([name, member]) => [name, member(row)]));
    }
    case 15: { // fixed_size_binary
      const data = batch.buffer(rows * type.width);
      return (row) => data.subarray(row * type.width, (row + 1) * type.width);
    }
    case 16: { // fixed_size_list
      const item = readColumn(type.children[0][1], rows * type.size, batch);
      return (row) => Array.from({ length: type.size }, (_, i) => item(row * type.size + i));
    }
    default:
      throw new Error(`no reader for Arrow type ${type.tag}`);
  }
}
