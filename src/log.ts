/** The daemon's log: pino, one JSON object a line on stderr. */
import { destination, type Logger as PinoLogger, pino } from "pino";

export const logLevels = ["debug", "info", "warn", "error", "silent"] as const;
export type LogLevel = (typeof logLevels)[number];
export type Logger = Pick<PinoLogger, "debug" | "info" | "warn" | "error" | "child">;

/**
 * Writes to stderr without a worker thread, so that the last line before a crash is not lost.
 *
 * @param level Least severe level that is written.
 */
export function createLogger(level: LogLevel): PinoLogger {
  return pino(
    { level, base: null, timestamp: pino.stdTimeFunctions.isoTime },
    destination({ dest: 2, sync: true }),
  );
}
