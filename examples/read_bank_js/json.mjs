// Section 2: canonical JSON. JSON.parse would take duplicate keys, huge integers and lone surrogates without
// a word, and has one kind of number where the format has two; hence this parser. White space is refused:
// canonical text has none.

import { CorruptError } from "./errors.mjs";

const MAX_JSON_DEPTH = 32;
const STRING = /"[^"\\\u0000-\u001f]*(?:\\(?:["\\/bfnrt]|u[0-9a-fA-F]{4})[^"\\\u0000-\u001f]*)*"/y;
const NUMBER = /-?(?:0|[1-9][0-9]*)((?:\.[0-9]+)?(?:[eE][+-]?[0-9]+)?)/y;
const WORD = /true|false|null/y;

/** A number written with a fraction or an exponent: `2.0` is no integer. */
export class Double {
  constructor(value) { this.value = value; }
  toJSON() { return this.value; }
  toString() { return String(this.value); }
}

/** The value of canonical JSON text. Objects have no prototype, so no key is special; numbers: see Double. */
export function parseJson(text) {
  let at = 0;
  const fail = (problem) => { throw new CorruptError(`JSON, character ${at}: ${problem}`); };
  const match = (pattern) => {
    pattern.lastIndex = at;
    const found = pattern.exec(text);
    if (found) at = pattern.lastIndex;
    return found;
  };
  const take = (character) => text[at] === character && ++at > 0;
  const expect = (character) => take(character) || fail(`expected ${character}`);

  function string() {
    const found = match(STRING) ?? fail("expected a string");
    const value = JSON.parse(found[0]);
    return value.isWellFormed() ? value : fail("a lone surrogate");
  }

  function number([digits, fraction]) {
    const value = Number(digits);
    if (!Number.isFinite(value)) fail("a number out of range");
    if (fraction) return new Double(value);
    return Number.isSafeInteger(value) ? value : fail("an integer out of range");
  }

  function object(depth) {
    const members = Object.create(null);
    if (take("}")) return members;
    do {
      const key = string();
      if (key in members) fail(`the key ${JSON.stringify(key)} stands twice`);
      expect(":");
      members[key] = value(depth);
    } while (take(","));
    expect("}");
    return members;
  }

  function array(depth) {
    const items = [];
    if (take("]")) return items;
    do items.push(value(depth)); while (take(","));
    expect("]");
    return items;
  }

  function value(depth) {
    if (text[at] === '"') return string();
    if ("{[".includes(text[at] ?? " ")) {
      if (depth === MAX_JSON_DEPTH) fail(`nested deeper than ${MAX_JSON_DEPTH} levels`);
      return take("{") ? object(depth + 1) : expect("[") && array(depth + 1);
    }
    const word = match(WORD);
    if (word) return JSON.parse(word[0]);
    return number(match(NUMBER) ?? fail("expected a value"));
  }

  const result = value(0);
  return at === text.length ? result : fail("text after the value");
}
