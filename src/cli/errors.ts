/** The two ways a command ends badly. Exit codes: 0 done, 1 failed, 2 misused. */

/** The command was used wrongly; the message names the flag or argument and the fix. */
export class UsageError extends Error {
  override readonly name = "UsageError";
}

/** The command was right, but it could not be done. */
export class FailedError extends Error {
  override readonly name = "FailedError";
}
