/** Opens and closes everything the daemon listens on: the unix socket, TCP, and the metrics. */
import type { Logger } from "../log.ts";
import type { MetricsSource } from "../metrics/source.ts";
import type { Service } from "../network/service.ts";
import type { ListenOptions } from "../runtime/daemon-options.ts";

export interface Listeners {
  /** `unix:///run/natbridge/natbridge.sock`, `http://127.0.0.1:9652/metrics` … */
  readonly addresses: string[];
  /** Ends event streams, lets running requests finish, closes; never throws. */
  stop(): Promise<void>;
}

/**
 * Listens as `options` say; all or nothing.
 *
 * @throws Error naming the flag that is wrong or the address that is taken.
 */
export async function startListeners(
  _service: Service & MetricsSource,
  _options: ListenOptions,
  _log: Logger,
): Promise<Listeners> {
  throw new Error("not written yet");
}
