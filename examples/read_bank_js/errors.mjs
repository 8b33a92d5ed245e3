// One error class per exit code of m3build, as its README lists them.

export class BankError extends Error {
  constructor(exitCode, message) {
    super(message);
    this.exitCode = exitCode;
  }
}

export class UsageError extends BankError {
  constructor(message) { super(2, message); }
}

export class MismatchError extends BankError {
  constructor(message) { super(4, message); }
}

export class CorruptError extends BankError {
  constructor(message) { super(5, message); }
}

export class ResourceError extends BankError {
  constructor(message) { super(6, message); }
}

/** Runs `parse`, and turns what damaged bytes make the standard library throw into one CorruptError. */
export function corruptWhere(where, parse) {
  try {
    return parse();
  } catch (error) {
    // DataView throws RangeError past its end; TextDecoder throws TypeError on bytes that are not UTF-8.
    if (error instanceof RangeError || error.code === "ERR_ENCODING_INVALID_ENCODED_DATA") {
      throw new CorruptError(`${where}: ${error.message}`);
    }
    if (error instanceof CorruptError) throw new CorruptError(`${where}: ${error.message}`);
    throw error;
  }
}

const UTF8 = new TextDecoder("utf-8", { fatal: true, ignoreBOM: true });

/** The string of UTF-8 bytes; a leading U+FEFF is text like any other (TextDecoder alone would drop it). */
export function utf8(bytes) {
  return UTF8.decode(bytes);
}
