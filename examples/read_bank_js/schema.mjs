// As much of JSON Schema as formats/schema/manifest.schema.json uses. A keyword that is not known here is an
// error of this program, so a changed schema cannot be half checked.

import { readFileSync } from "node:fs";
import { Double } from "./json.mjs";

const PLACE = new URL("../../formats/schema/manifest.schema.json", import.meta.url);
const SCHEMA = JSON.parse(readFileSync(PLACE, "utf8"));
const SILENT = new Set(["$schema", "$defs", "title", "description", "properties", "required"]);

function typeOf(value) {
  if (value === null) return "null";
  if (Array.isArray(value)) return "array";
  if (value instanceof Double) return "number";
  return typeof value === "number" ? "integer" : typeof value;
}

const KEYWORDS = {
  type: (value, type) => typeOf(value) === type || (type === "number" && typeOf(value) === "integer"),
  const: (value, constant) => value === constant,
  pattern: (value, pattern) => typeof value !== "string" || new RegExp(pattern, "u").test(value),
  minLength: (value, least) => typeof value !== "string" || [...value].length >= least,
  minimum: (value, least) => typeof value !== "number" || value >= least,
  maximum: (value, most) => typeof value !== "number" || value <= most,
  minItems: (value, least) => !Array.isArray(value) || value.length >= least,
  maxItems: (value, most) => !Array.isArray(value) || value.length <= most,
  // Only lists of integers are to be unique in this schema.
  uniqueItems: (value) => !Array.isArray(value) || new Set(value).size === value.length,
};

function* check(value, schema, path) {
  if (schema.$ref) return yield* check(value, SCHEMA.$defs[schema.$ref.replace("#/$defs/", "")], path);
  for (const [keyword, argument] of Object.entries(schema)) {
    if (KEYWORDS[keyword]) {
      const rule = `"${keyword}": ${JSON.stringify(argument)}`;
      if (!KEYWORDS[keyword](value, argument)) yield `${path}: breaks ${rule}`;
    } else if (keyword === "oneOf") {
      // Always null or one other schema; the problems of the other one say more than "neither".
      if (value !== null) yield* check(value, argument.find((one) => one.type !== "null"), path);
    } else if (keyword === "items") {
      const items = Array.isArray(value) ? value : [];
      for (const [i, item] of items.entries()) yield* check(item, argument, `${path}[${i}]`);
    } else if (keyword !== "additionalProperties" && !SILENT.has(keyword)) {
      throw new Error(`manifest.schema.json: unknown keyword ${keyword}`);
    }
  }
  if (typeOf(value) !== "object") return;
  const { properties = {}, required = [], additionalProperties = true } = schema;
  for (const key of required) if (!(key in value)) yield `${path}.${key}: missing`;
  for (const [key, member] of Object.entries(value)) {
    if (Object.hasOwn(properties, key)) yield* check(member, properties[key], `${path}.${key}`);
    else if (additionalProperties === false) yield `${path}.${key}: unknown field`;
    else if (additionalProperties !== true) yield* check(member, additionalProperties, `${path}.${key}`);
  }
}

/** All that JSON Schema finds wrong with a parsed manifest, one string a problem, each with its path. */
export function schemaProblems(manifest) {
  return [...check(manifest, SCHEMA, "$")];
}
