/** What `natbridge daemon` hands to `runDaemon` in `src/daemon.ts`, checked and with defaults. */
import type { LogLevel } from "../log.ts";

/** `host:port` of a TCP listener, taken apart. */
export interface HostPort {
  host: string;
  port: number;
}

/** Where the API and the metrics listen. */
export interface ListenOptions {
  /** Path of the API's unix socket. */
  socketPath: string;
  /** Group that may use the socket too, which makes its members as good as root; null: root only. */
  socketGroup: string | null;
  /** TCP listener of the API; needs `tokensFile`, and `tls` unless the host is a loopback address. */
  listen: HostPort | null;
  tokensFile: string | null;
  tls: { certFile: string; keyFile: string } | null;
  /** TCP listener for /metrics, /healthz and /readyz only. */
  metricsListen: HostPort | null;
}

export interface DaemonOptions extends ListenOptions {
  stateDir: string;
  runDir: string;
  /** Device names; empty: found out. */
  uplinks: string[];
  /** False with --no-fast-path: no eBPF program is loaded. */
  fastPath: boolean;
  /** False with --no-stand-in-table: a flush of all rules interrupts translated connections. */
  standInTable: boolean;
  logLevel: LogLevel;
}

export const defaultStateDir = "/var/lib/natbridge";
export const defaultRunDir = "/run/natbridge";
export const socketName = "natbridge.sock";
