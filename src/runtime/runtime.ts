/** Which of the two runtimes this is. */
export const isDeno: boolean = process.versions.deno !== undefined;
