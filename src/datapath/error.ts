/** An error of the datapath, with a kind to act on and a sentence for people. */

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

export class DatapathError extends Error {
  readonly kind: DatapathErrorKind;

  constructor(kind: DatapathErrorKind, message: string) {
    super(message);
    this.name = "DatapathError";
    this.kind = kind;
  }
}
