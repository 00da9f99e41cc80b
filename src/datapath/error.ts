/** What went wrong in the datapath, as far as a caller can act on it. */
export const datapathErrorKinds = [
  "exists",
  "not_found",
  "denied",
  "unsupported",
  "busy",
  "invalid",
  "io",
] as const;

export type DatapathErrorKind = (typeof datapathErrorKinds)[number];

/** An error of the datapath: a kind to act on and a message to read. */
export class DatapathError extends Error {
  readonly kind: DatapathErrorKind;

  constructor(kind: DatapathErrorKind, message: string, options?: ErrorOptions) {
    super(message, options);
    this.name = "DatapathError";
    this.kind = kind;
  }
}

const tagged = /^\[([a-z_]+)\] (.*)$/s;

/**
 * The error for one that the addon threw. The addon writes its kind in front of the message,
 * `[not_found] …`, because Node-API carries a message only; anything else (an argument of the wrong
 * type, a panic) has no kind and becomes `io`, or `invalid` where Node-API says that the argument
 * was wrong.
 */
export function toDatapathError(cause: unknown): DatapathError {
  if (cause instanceof DatapathError) return cause;
  const message = cause instanceof Error ? cause.message : String(cause);
  const [, word, text] = tagged.exec(message) ?? [];
  const kind = datapathErrorKinds.find((known) => known === word);
  if (kind !== undefined && text !== undefined) return new DatapathError(kind, text, { cause });
  return new DatapathError(isArgumentError(cause) ? "invalid" : "io", message, { cause });
}

/** Node-API's status for an argument that is missing or of the wrong type, as `code`. */
function isArgumentError(cause: unknown): boolean {
  if (!(cause instanceof Error) || !("code" in cause)) return false;
  return typeof cause.code === "string" && /^(InvalidArg|\w+Expected)$/.test(cause.code);
}
