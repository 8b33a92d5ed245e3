// A version of a bank: its manifest, its files (opened once and for all), its chunks and their memories.

import { createHash } from "node:crypto";
import { lstatSync, readdirSync } from "node:fs";
import { join } from "node:path";
import { fixedBinary, fixedList, float16, list, struct, uint, utf8 } from "./arrow.mjs";
import { Codec } from "./codec.mjs";
import { CorruptError, UsageError, corruptWhere } from "./errors.mjs";
import { SHARD_FILES, headList, parseManifest } from "./manifest.mjs";
import { File, Table, readArrays } from "./table.mjs";

const MAX_MANIFEST_BYTES = 536870912;
const UNUSED_SLOT = 255;

const DOCUMENTS = {
  id: utf8, source: utf8, position: uint(64), title: utf8, metadata: utf8, sha256: fixedBinary(32),
  characters: uint(64), chunks: uint(32), part: uint(32),
};
const CHUNKS = {
  id: fixedBinary(32), text: utf8, title: utf8, tokens: uint(16), token_ends: list(uint(16)),
  occurrences: list(struct({ document: utf8, row: uint(32), start: uint(64), end: uint(64) })),
};

/** The wanted version, if it is there, or the current one: the highest. Other names mean nothing. */
function pickVersion(path, wanted) {
  const versions = join(path, "versions");
  if (!isDirectory(versions)) throw new UsageError(`${path}: no bank there, it has no versions/`);
  if (!isDirectory(join(path, "data"))) throw new CorruptError(`${path}: the bank has no directory data/`);
  const names = readdirSync(versions).filter((name) => /^[0-9]{8}\.json$/.test(name));
  const numbers = names.map((name) => Number.parseInt(name, 10)).filter((number) => number > 0);
  if (numbers.length === 0) throw new UsageError(`${path}: the bank has no version yet`);
  if (wanted === undefined) return numbers.reduce((highest, number) => Math.max(highest, number));
  if (!numbers.includes(wanted)) throw new UsageError(`${path}: has no version ${wanted}`);
  return wanted;
}

/** Whether a directory has this name, as itself: a link to one does not count. */
function isDirectory(path) {
  try {
    return lstatSync(path).isDirectory();
  } catch (error) {
    if (["ENOENT", "ENOTDIR"].includes(error.code)) return false;
    throw error;
  }
}

export class Bank {
  #files = new Map(); // name -> File

  /** Opens the current version of the bank at `path`, or the one of the given number. */
  constructor(path, version) {
    const number = pickVersion(path, version);
    const file = new File(join(path, "versions", `${String(number).padStart(8, "0")}.json`));
    if (file.bytes > MAX_MANIFEST_BYTES) throw new CorruptError(`${file.path}: is too large for a manifest`);
    const bytes = file.readAt(0, file.bytes);
    file.close();
    this.manifest = corruptWhere(file.path, () => parseManifest(bytes, number));
    this.heads = headList(this.manifest.memory);
    for (const entry of this.entries()) this.#openFile(join(path, "data", entry.name), entry);
    this.shards = this.manifest.shards.map((shard) => new Shard(shard, this));
  }

  /** The file entries of the version, each with its `kind`. */
  entries(sources = [...this.manifest.shards, this.manifest.files]) {
    const kinds = [...SHARD_FILES, ...Object.keys(this.manifest.files)];
    const present = (source) => kinds.filter((kind) => source[kind]);
    return sources.flatMap((source) => present(source).map((kind) => ({ kind, ...source[kind] })));
  }

  // Opened at once, the version stays readable should its files be removed meanwhile.
  #openFile(path, { name, bytes }) {
    if (this.#files.has(name)) return;
    const file = new File(path);
    this.#files.set(name, file);
    if (file.bytes !== bytes) throw new CorruptError(`${path}: has ${file.bytes} bytes, expected ${bytes}`);
  }

  table(entry, columns) { return new Table(this.#files.get(entry.name), entry, columns); }

  /** All chunks as {shard, row, id}, id in hex. */
  *chunkIds() {
    for (const shard of this.shards) {
      for (let row = 0; row < shard.rows; row++) {
        const id = shard.chunks.row(row, (columns, at) => columns.id(at).toString("hex"));
        yield { shard, row, id };
      }
    }
  }

  /** Where the one chunk stands whose id starts with `prefix`: {shard, row, id} for each shard with it. */
  find(prefix) {
    const found = [];
    for (const place of this.chunkIds()) if (place.id.startsWith(prefix)) found.push(place);
    const ids = new Set(found.map(({ id }) => id));
    if (ids.size === 0) throw new UsageError(`no chunk's id starts with "${prefix}"`);
    if (ids.size > 1) throw new UsageError(`the ids of ${ids.size} chunks start with "${prefix}"`);
    return found;
  }

  /**
   * What each head kept of a row: [{layer, head, slots: [{position, key, value}]}], used slots only; null
   * for a cold row, whose chunk has no memory yet.
   */
  memory(shard, row, tokens) {
    const { memory, row_bytes: rowBytes, codec } = this.manifest;
    const { sparse_tokens: slots } = memory;
    if (!shard.entry.memories) return null;
    this.codec ??= new Codec(codec, this.#codecArrays());
    return shard.memories.row(row, (columns, at) => {
      const bytes = columns.memory(at);
      const positions = bytes.subarray(rowBytes.codes);
      const heads = this.heads.map(([layer, head], index) => {
        // Codes lie in order (layer, key or value, head, slot), so a layer's start behind two for each slot
        // of the heads of earlier layers.
        const rank = memory.memory_layers.indexOf(layer);
        const count = memory.memory_heads[rank].length;
        const within = memory.memory_heads[rank].indexOf(head);
        const code = (kind, slot) => {
          const vector = (2 * (index - within) + kind * count + within) * slots + slot;
          return bytes.subarray(vector * codec.bytes_per_vector, (vector + 1) * codec.bytes_per_vector);
        };
        const kept = keptPositions(positions.subarray(index * slots, (index + 1) * slots), tokens, code);
        const decode = (kind, slot) => this.codec.decode(kind, index, code(kind, slot));
        const slot = (position, s) => ({ position, key: decode(0, s), value: decode(1, s) });
        return { layer, head, slots: kept.map(slot) };
      });
      return heads.every(({ slots: kept }) => kept.length === 0) ? null : heads;
    });
  }

  #codecArrays() {
    const entry = this.manifest.files.codec;
    return entry ? readArrays(this.#files.get(entry.name), entry) : {};
  }
}

/** The positions of one head without its unused slots, checked as section 7 states them. */
function keptPositions(positions, tokens, code) {
  const zero = (bytes) => bytes.every((byte) => byte === 0);
  const unused = (slot) => positions[slot] === UNUSED_SLOT && zero(code(0, slot)) && zero(code(1, slot));
  const kept = [...positions].filter((position) => position !== UNUSED_SLOT);
  const ascending = kept.every((position, slot) => slot === 0 || kept[slot - 1] < position);
  const within = kept.every((position) => position < tokens);
  const unusedLast = [...positions].every((_, slot) => slot < kept.length || unused(slot));
  if (!ascending || !within || !unusedLast) {
    throw new CorruptError(`kept positions ${[...positions]} break the format`);
  }
  return kept;
}

class Shard {
  #tables = {};

  constructor(entry, bank) {
    this.entry = entry;
    this.rows = entry.rows;
    this.bank = bank;
  }

  #table(kind, columns) { return (this.#tables[kind] ??= this.bank.table(this.entry[kind], columns)); }

  get chunks() { return this.#table("chunks", CHUNKS); }

  get documents() { return this.#table("documents_file", DOCUMENTS); }

  get memories() {
    const { codes, positions } = this.bank.manifest.row_bytes;
    return this.#table("memories", { memory: fixedBinary(codes + positions) });
  }

  get embeddings() {
    return this.#table("embeddings", { embedding: fixedList(float16, this.bank.manifest.embedder.dim) });
  }

  /** A row of the chunks table, checked, with its `reference` text and the `source` of each occurrence. */
  chunk(row) {
    const chunk = this.chunks.get(row);
    const where = `${this.chunks.file.path}: row ${row}`;
    chunk.reference = chunk.title === "" ? chunk.text : `${chunk.title}\n${chunk.text}`;
    if (!createHash("sha256").update(chunk.reference).digest().equals(chunk.id)) {
      throw new CorruptError(`${where}: the id is not the SHA-256 of the text`);
    }
    // Spread, a string gives code points, which the format counts; its own length counts UTF-16 units.
    const ends = [0, ...chunk.token_ends, [...chunk.reference].length];
    if (chunk.tokens !== ends.length - 2 || ends.some((end, i) => i > 0 && end < ends[i - 1])) {
      throw new CorruptError(`${where}: its tokens do not follow each other within the text`);
    }
    for (const occurrence of chunk.occurrences) {
      if (occurrence.row >= this.entry.documents) {
        throw new CorruptError(`${where}: an occurrence in no document`);
      }
      const document = this.documents.get(occurrence.row, ["id", "source", "characters"]);
      const { start, end } = occurrence;
      if (document.id !== occurrence.document || start >= end || end > document.characters) {
        throw new CorruptError(`${where}: an occurrence that its document does not have`);
      }
      occurrence.source = document.source;
    }
    if (chunk.occurrences.length === 0) throw new CorruptError(`${where}: has no occurrence`);
    return chunk;
  }
}
