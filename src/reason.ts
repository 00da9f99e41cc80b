/** What went wrong, of whatever was thrown: JavaScript throws anything. */
export const reasonOf = (error: unknown): string =>
  error instanceof Error ? error.message : String(error);
