// The command line: prints what a bank holds, for people or as JSON.

import { parseArgs } from "node:util";
import { Bank } from "./bank.mjs";
import { BankError, ResourceError, UsageError } from "./errors.mjs";
import { float32Hex } from "./floats.mjs";

const USAGE = "usage: node main.mjs BANK [show ID_OR_PREFIX...] [--version N] [--json]";
const LISTED_CHARACTERS = 60;

// Text for a terminal: control characters other than line feeds are written as escapes.
const escaped = (control) => `\\u${control.charCodeAt(0).toString(16).padStart(4, "0")}`;
const printable = (text) => text.replace(/[\u0000-\u0009\u000b-\u001f\u007f-\u009f]/g, escaped);
const oneLine = (text) => printable(text.replace(/\s+/gu, " "));
const rounded = (vector) => Array.from(vector, (value) => value.toPrecision(6)).join(" ");

function* listing(bank) {
  for (const { shard, row, id } of bank.chunkIds()) {
    const chunk = shard.chunk(row);
    const text = [...chunk.text].slice(0, LISTED_CHARACTERS).join("");
    yield { id, source: chunk.occurrences[0].source, text };
  }
}

function listJson(bank) {
  const { version, sha256, format_version, counts, codec, files } = bank.manifest;
  const brief = (source) => bank.entries([source]).map(({ kind, name, bytes }) => ({ kind, name, bytes }));
  const shard = ({ rows, entry }) => ({ rows, documents: entry.documents, files: brief(entry) });
  return {
    version, sha256, format_version, counts, codec: codec.spec, shards: bank.shards.map(shard),
    files: brief(files), chunks: [...listing(bank)],
  };
}

function* listText(bank) {
  const { version, sha256, format_version: format, operation, created, counts, codec, files } = bank.manifest;
  const fileLines = (source) => bank.entries([source]).map(({ kind, bytes, name }) => (
    `  ${kind.padEnd(14)} ${String(bytes).padStart(12)} bytes  ${name}`));
  yield `version ${version}, format ${format}, ${oneLine(operation)}, ${created}`;
  yield `sha256:${sha256}`;
  yield Object.entries(counts).map(([name, count]) => `${count} ${oneLine(name)}`).join(", ");
  const codecName = oneLine(codec.spec);
  yield `codec ${codecName}, ${codec.bytes_per_vector} bytes a vector, ${bank.heads.length} memory heads`;
  for (const [i, { rows, entry }] of bank.shards.entries()) {
    yield `shard ${i}: ${rows} chunks, ${entry.documents} documents`;
    yield* fileLines(entry);
  }
  yield "all shards";
  yield* fileLines(files);
  yield "chunks";
  for (const { id, source, text } of listing(bank)) {
    yield `  ${id.slice(0, 12)}  ${oneLine(source)}  ${oneLine(text)}`;
  }
}

// A text may stand in several shards, with one memory for all: the first one's is read.
function gather(bank, prefix) {
  const found = bank.find(prefix);
  const places = found.map(({ shard, row }) => (
    { shard: bank.shards.indexOf(shard), row, occurrences: shard.chunk(row).occurrences }));
  const [{ shard, row, id }] = found;
  const chunk = shard.chunk(row);
  const memory = bank.memory(shard, row, chunk.tokens);
  return { id, chunk, places, memory, embedding: shard.embeddings.get(row).embedding };
}

function showJson({ id, chunk, places, memory, embedding }) {
  const { text, title, tokens, token_ends } = chunk;
  const heads = memory && memory.map(({ layer, head, slots }) => ({
    layer,
    head,
    positions: slots.map(({ position }) => position),
    keys: slots.map(({ key }) => float32Hex(key)),
    values: slots.map(({ value }) => float32Hex(value)),
  }));
  return { id, text, title, tokens, token_ends, places, memory: heads, embedding: float32Hex(embedding) };
}

function* showText({ id, chunk, places, memory }) {
  const characters = [...chunk.reference]; // offsets count code points
  const token = (i) => characters.slice(chunk.token_ends[i - 1] ?? 0, chunk.token_ends[i]).join("");
  yield `id ${id}`;
  yield `${chunk.tokens} tokens, ${[...chunk.text].length} characters`;
  if (chunk.title) yield `title: ${oneLine(chunk.title)}`;
  yield printable(chunk.text);
  for (const { shard, row, occurrences } of places) {
    yield `shard ${shard}, row ${row}`;
    for (const { document, source, start, end } of occurrences) {
      yield `  in ${oneLine(document)} of ${oneLine(source)}, characters ${start} to ${end}`;
    }
  }
  if (!memory) yield "this chunk has no memory yet";
  for (const { layer, head, slots } of memory ?? []) {
    yield `layer ${layer}, head ${head}`;
    for (const { position, key, value } of slots) {
      yield `  position ${position}, ${JSON.stringify(token(position))}`;
      yield `    key   ${rounded(key)}`;
      yield `    value ${rounded(value)}`;
    }
  }
}

function run(argv) {
  let parsed;
  try {
    const options = { version: { type: "string" }, json: { type: "boolean" } };
    parsed = parseArgs({ args: argv, options, allowPositionals: true });
  } catch (error) {
    throw new UsageError(error.message);
  }
  const { values: { version, json }, positionals: [path, command, ...prefixes] } = parsed;
  const known = command === undefined || (command === "show" && prefixes.length > 0);
  if (path === undefined || !known) throw new UsageError(USAGE);
  if (!/^[1-9][0-9]{0,7}$/.test(version ?? "1")) throw new UsageError(`--version ${version}: is no version`);
  const wrong = prefixes.find((prefix) => !/^[0-9a-f]{1,64}$/i.test(prefix));
  if (wrong !== undefined) throw new UsageError(`${wrong}: is no hex start of an id`);
  const bank = new Bank(path, version && Number(version));
  if (!command) return json ? [JSON.stringify(listJson(bank))] : listText(bank);
  return showAll(bank, prefixes, json);
}

function* showAll(bank, prefixes, json) {
  for (const prefix of prefixes) {
    const found = gather(bank, prefix.toLowerCase());
    if (json) yield JSON.stringify(showJson(found));
    else yield* showText(found);
  }
}

process.stdout.on("error", (error) => {
  if (error.code === "EPIPE") process.exit(0); // `| head` is no failure
  throw error;
});
try {
  for (const line of run(process.argv.slice(2))) process.stdout.write(`${line}\n`);
} catch (thrown) {
  const error = thrown.syscall ? new ResourceError(thrown.message) : thrown;
  if (!(error instanceof BankError)) throw error; // a bug: Node prints the stack and exits with 1
  process.stderr.write(`error: ${oneLine(error.message)}\n`);
  process.exitCode = error.exitCode;
}
