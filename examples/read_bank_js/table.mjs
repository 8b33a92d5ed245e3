// Data files: opened as section 1 demands, read batch by batch as section 4 does; section 10's named arrays.

import { createHash } from "node:crypto";
import { closeSync, constants, fstatSync, openSync, readSync } from "node:fs";
import { checkHead, int64, largeBinary, list, readBatch, utf8 } from "./arrow.mjs";
import { CorruptError, corruptWhere } from "./errors.mjs";

const MAX_ARRAYS = 65536;
const MAX_ARRAY_DIMENSIONS = 8;
const ARRAYS = { name: utf8, dtype: utf8, shape: list(int64), data: largeBinary };
const ITEM_BYTES = {
  uint8: 1, uint16: 2, uint32: 4, uint64: 8, int8: 1, int16: 2, int32: 4, int64: 8,
  float16: 2, float32: 4, float64: 8,
};

/** A regular file, opened without following a link; `readAt` gives exactly the bytes asked for. */
export class File {
  constructor(path) {
    try {
      // O_NONBLOCK, so that a named pipe in a file's place is refused instead of waited for.
      this.handle = openSync(path, constants.O_RDONLY | constants.O_NOFOLLOW | constants.O_NONBLOCK);
    } catch (error) {
      if (error.code === "ENOENT") throw new CorruptError(`${path}: the file is missing`);
      const special = ["ELOOP", "EMLINK", "ENXIO"].includes(error.code); // a link, a socket
      throw special ? new CorruptError(`${path}: is no regular file`) : error;
    }
    const status = fstatSync(this.handle);
    this.path = path;
    this.bytes = status.size;
    if (!status.isFile()) {
      this.close();
      throw new CorruptError(`${path}: is no regular file`);
    }
  }

  readAt(start, end) {
    const bytes = Buffer.alloc(end - start);
    for (let done = 0; done < bytes.length;) {
      const count = readSync(this.handle, bytes, done, bytes.length - done, start + done);
      if (count === 0) throw new CorruptError(`${this.path}: ends early`);
      done += count;
    }
    return bytes;
  }

  close() { closeSync(this.handle); }
}

/** 128 bits of SHA-256, as section 4 checks the parts of a table. */
const digest = (bytes) => createHash("sha256").update(bytes).digest("hex").slice(0, 32);

/** Rows of one Arrow file. Only the batch that was read last is kept. */
export class Table {
  #batch = { number: -1 };

  constructor(file, entry, columns) {
    this.file = file;
    this.rows = entry.rows;
    this.batches = entry.batches;
    this.columns = columns;
    const { bytes, digest: expected } = entry.batches.head;
    corruptWhere(file.path, () => checkHead(this.#checked(0, bytes, expected), columns));
  }

  #checked(start, end, expected) {
    const bytes = this.file.readAt(start, end);
    const found = digest(bytes);
    if (found !== expected) {
      throw new CorruptError(`bytes ${start} to ${end} have the digest ${found}, expected ${expected}`);
    }
    return bytes;
  }

  /** `read(columns, row within the batch)` for one row; what it finds damaged is reported as this file's. */
  row(row, read) {
    const { rows, head, ends, digests } = this.batches;
    const number = Math.floor(row / rows);
    return corruptWhere(this.file.path, () => {
      if (this.#batch.number !== number) {
        const start = number === 0 ? head.bytes : ends[number - 1];
        const bytes = this.#checked(start, ends[number], digests[number]);
        const count = Math.min(rows, this.rows - number * rows);
        this.#batch = { number, columns: readBatch(bytes, this.columns, count) };
      }
      return read(this.#batch.columns, row % rows);
    });
  }

  /** All of the given columns of a row. */
  get(row, names = Object.keys(this.columns)) {
    return this.row(row, (columns, at) => Object.fromEntries(names.map((name) => [name, columns[name](at)])));
  }
}

/** The named arrays of a codec or embedder file: {name: {dtype, shape, data}}. */
export function readArrays(file, entry) {
  const table = new Table(file, entry, ARRAYS);
  if (table.rows > MAX_ARRAYS) throw new CorruptError(`${table.file.path}: has over ${MAX_ARRAYS} arrays`);
  const arrays = Object.create(null);
  let last = Buffer.alloc(0); // below every name but the empty one
  for (let row = 0; row < table.rows; row++) {
    const { name, dtype, shape, data } = table.get(row);
    const problem = (text) => new CorruptError(`${table.file.path}: array ${JSON.stringify(name)} ${text}`);
    // UTF-8 bytes sort as code points do; JavaScript's own order is that of UTF-16 units.
    if (Buffer.compare(last, Buffer.from(name)) >= 0) throw problem("is out of order");
    last = Buffer.from(name);
    if (!Object.hasOwn(ITEM_BYTES, dtype)) throw problem(`has dtype ${JSON.stringify(dtype)}`);
    const size = shape.reduce((product, length) => product * length, ITEM_BYTES[dtype]);
    if (shape.length > MAX_ARRAY_DIMENSIONS || shape.some((length) => length < 0) || size !== data.length) {
      throw problem(`has shape [${shape}] and ${data.length} bytes`);
    }
    arrays[name] = { dtype, shape, data };
  }
  return arrays;
}
