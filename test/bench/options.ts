/** The benchmark's command line. */
import { parseArgs } from "node:util";
import { isDeno } from "../../src/runtime/runtime.ts";
import type { Variant } from "./topologies.ts";

export interface Options {
  repeats: number;
  secondsPerRun: number;
  /** Where the JSON goes; null: into `bench/`, with table, chart and page. */
  json: string | null;
  /** Empty: all. */
  loads: string[];
  variants: Variant[];
  bridgeNfCallIptables: 0 | 1;
  /** Of the daemon: the one the benchmark runs on. */
  runtime: "deno" | "node";
}

export const usage = `usage: npm run bench -- [--quick] [--json FILE] [--repeats N] [--seconds N]
                         [--load NAME]... [--variant NAME]... [--bridge-nf 0|1]

  --quick        3 repeats of 2 s instead of 7 of 5 s: under five minutes
  --json FILE    write the results there, and nothing into bench/
  --load NAME    only tcp, udp64, connections, latency or loopback
  --variant NAME only hop, routed, kernel, fast, docker-proxy or direct
  --bridge-nf N  net.bridge.bridge-nf-call-iptables of the host (default 0)`;

const allLoads = ["tcp", "udp64", "connections", "latency", "loopback"];
const allVariants: Variant[] = ["hop", "routed", "kernel", "fast", "docker-proxy", "direct"];

function wholeNumber(flag: string, value: string | undefined, preset: number, limit: number) {
  if (value === undefined) return preset;
  const number = Number(value);
  if (!Number.isInteger(number) || number < 1 || number > limit) {
    throw new Error(`--${flag} ${value}: give a whole number from 1 to ${limit}`);
  }
  return number;
}

/** @throws Error naming the flag that is wrong. */
export function parseOptions(args: string[]): Options {
  const { values } = parseArgs({
    args,
    options: {
      quick: { type: "boolean", default: false },
      json: { type: "string" },
      repeats: { type: "string" },
      seconds: { type: "string" },
      load: { type: "string", multiple: true, default: [] },
      variant: { type: "string", multiple: true, default: [] },
      "bridge-nf": { type: "string", default: "0" },
    },
  });
  const wrongLoad = values.load.find((name) => !allLoads.includes(name));
  if (wrongLoad !== undefined) {
    throw new Error(`--load ${wrongLoad}: it is one of ${allLoads.join(", ")}`);
  }
  const variants = values.variant.map((name) => {
    const variant = allVariants.find((it) => it === name);
    if (variant === undefined) {
      throw new Error(`--variant ${name}: it is one of ${allVariants.join(", ")}`);
    }
    return variant;
  });
  const nf = values["bridge-nf"];
  if (nf !== "0" && nf !== "1") throw new Error(`--bridge-nf ${nf}: it is 0 or 1`);
  return {
    repeats: wholeNumber("repeats", values.repeats, values.quick ? 3 : 7, 100),
    secondsPerRun: wholeNumber("seconds", values.seconds, values.quick ? 2 : 5, 60),
    json: values.json ?? null,
    loads: values.load,
    variants,
    bridgeNfCallIptables: nf === "1" ? 1 : 0,
    runtime: isDeno ? "deno" : "node",
  };
}
