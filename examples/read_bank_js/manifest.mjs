// Section 3: a manifest is hashed first, then asked for its format, then checked field by field.

import { createHash } from "node:crypto";
import { CorruptError, MismatchError, corruptWhere, utf8 } from "./errors.mjs";
import { parseJson } from "./json.mjs";
import { schemaProblems } from "./schema.mjs";

const FORMAT = "m3build-bank";
const FORMAT_VERSION = 1;
const FEATURES = new Set(); // format 1 defines none
const TAIL = /^,"sha256":"([0-9a-f]{64})"\}\n$/;
const TAIL_BYTES = 78;

export const SUFFIXES = {
  chunks: "chunks.arrow", documents_file: "documents.arrow", memories: "memories.arrow",
  embeddings: "embeddings.arrow", index: "index", codec: "codec.arrow", embedder: "embedder.arrow",
  rejects: "rejects.jsonl.zst", eval: "eval.json",
};
export const SHARD_FILES = ["chunks", "documents_file", "memories", "embeddings", "index"];

/** The manifest in `bytes`, the file of version `number`, with its digest in `sha256`. */
export function parseManifest(bytes, number) {
  // latin1 gives one character a byte, so no bytes outside ASCII can pass for the tail.
  const tail = TAIL.exec(bytes.subarray(-TAIL_BYTES).toString("latin1"));
  if (!tail) throw new CorruptError("the manifest does not end in its SHA-256");
  const body = Buffer.concat([bytes.subarray(0, -TAIL_BYTES), Buffer.from("}")]);
  const digest = createHash("sha256").update(body).digest("hex");
  if (digest !== tail[1]) {
    throw new CorruptError(`the manifest's SHA-256 is ${digest}, but it says ${tail[1]}`);
  }
  const manifest = corruptWhere("manifest", () => parseJson(utf8(body)));
  checkFormat(manifest);
  if ("sha256" in manifest) throw new CorruptError("the manifest has a second field sha256");
  manifest.sha256 = digest;
  let problems = schemaProblems(manifest);
  if (problems.length === 0) problems = [...crossProblems(manifest, number)];
  if (problems.length > 0) throw new CorruptError(`the manifest breaks the format: ${problems.join("; ")}`);
  return manifest;
}

/** Refuses what a later m3build wrote, before any rule of format 1 is applied to it. */
function checkFormat(manifest) {
  if (manifest?.format !== FORMAT) throw new CorruptError(`this is no manifest of format ${FORMAT}`);
  const { format_version: version, features } = manifest;
  if (Number.isInteger(version) && version > FORMAT_VERSION) {
    throw new MismatchError(`the bank has format ${version}, this program reads format ${FORMAT_VERSION}`);
  }
  if (!Array.isArray(features)) return; // the schema has the words for it
  const unknown = features.filter((name) => typeof name === "string" && !FEATURES.has(name));
  if (unknown.length > 0) {
    const names = unknown.map((name) => JSON.stringify(name)).join(", ");
    throw new MismatchError(`the bank uses features that this program does not know: ${names}`);
  }
}

const ascends = (list) => list.every((item, i) => i === 0 || list[i - 1] < item);

/** [layer, key-value head] of all memory heads, in the order of the format: N of them. */
export function headList({ memory_layers: layers, memory_heads: heads }) {
  return layers.flatMap((layer, rank) => heads[rank].map((head) => [layer, head]));
}

/** The rules that no JSON Schema can state. */
function* crossProblems(manifest, number) {
  const { version, base, counts, memory, model, codec, row_bytes: rowBytes, shards, files } = manifest;
  if (version !== number) yield `$.version: is ${version} in the file of version ${number}`;
  if (base && base.version >= version) yield "$.base.version: is not below $.version";
  const rows = shards.reduce((sum, shard) => sum + shard.rows, 0);
  if (counts.chunks !== rows) yield `$.counts.chunks: is ${counts.chunks}, the shards have ${rows} rows`;
  if (!ascends(memory.memory_layers)) yield "$.memory.memory_layers: does not ascend";
  if (memory.memory_heads.length !== memory.memory_layers.length) {
    yield "$.memory.memory_heads: is not one list a layer";
  } else {
    if (!memory.memory_heads.every(ascends)) yield "$.memory.memory_heads: does not ascend";
    if (memory.memory_heads.flat().some((head) => head >= model.kv_heads)) {
      yield `$.memory.memory_heads: has a head that a model of ${model.kv_heads} does not have`;
    }
    const heads = headList(memory);
    const slots = heads.length * memory.sparse_tokens;
    const codes = 2 * slots * codec.bytes_per_vector;
    if (rowBytes.codes !== codes) yield `$.row_bytes.codes: is ${rowBytes.codes}, not ${codes}`;
    if (rowBytes.positions !== slots) yield `$.row_bytes.positions: is ${rowBytes.positions}, not ${slots}`;
    if (slots === 0 && shards.some((shard) => shard.memories)) yield "$.row_bytes: is 0 in spite of memories";
    // A decoder needs these; where they are there they repeat what other fields say.
    const repeated = { heads, head_dim: model.head_dim, slots: memory.sparse_tokens };
    for (const [key, value] of Object.entries(repeated)) {
      if (key in codec && JSON.stringify(codec[key]) !== JSON.stringify(value)) {
        yield `$.codec.${key}: is another than that of $.memory and $.model`;
      }
    }
  }
  const without = shards.reduce((sum, shard) => sum + (shard.memories === null ? shard.rows : 0), 0);
  const cold = counts.cold ?? without;
  if (cold < without || cold > rows) yield `$.counts.cold: is ${cold}, not from ${without} to ${rows}`;
  for (const [i, shard] of shards.entries()) {
    for (const kind of SHARD_FILES) {
      const rows = { index: null, documents_file: shard.documents }[kind] ?? shard.rows;
      yield* fileProblems(shard[kind], kind, kind === "index" ? null : rows, `$.shards[${i}].${kind}`);
    }
  }
  for (const kind of Object.keys(files)) yield* fileProblems(files[kind], kind, null, `$.files.${kind}`);
}

function* fileProblems(entry, kind, rows, path) {
  if (entry === null) return;
  if (entry.name !== `${entry.sha256}.${SUFFIXES[kind]}`) yield `${path}.name: is not its sha256 and suffix`;
  if (rows !== null && entry.rows !== rows) yield `${path}.rows: is ${entry.rows}, not ${rows}`;
  if (entry.batches === null) return;
  const { rows: batchRows, head, ends, digests } = entry.batches;
  const count = Math.ceil(entry.rows / batchRows);
  if (ends.length !== count || digests.length !== count) yield `${path}.batches: is not ${count} batches`;
  if (!ascends([head.bytes, ...ends]) || (ends.at(-1) ?? head.bytes) > entry.bytes) {
    yield `${path}.batches.ends: does not ascend from the head's end to the file's`;
  }
}
