/** CPU time of the whole machine, interrupts included: packets are handled in softirqs of nobody. */
import { readFileSync } from "node:fs";

/** USER_HZ of /proc/stat (proc_stat(5)): 100 on every architecture that Linux runs containers on. */
const ticksPerSecond = 100;

/** Seconds that all CPUs were busy since the machine started. */
export function busySeconds(): number {
  const line = readFileSync("/proc/stat", "utf8").split("\n")[0] ?? "";
  const [user = 0, nice = 0, system = 0, , , irq = 0, softirq = 0] = line
    .trim()
    .split(/\s+/)
    .slice(1)
    .map(Number);
  return (user + nice + system + irq + softirq) / ticksPerSecond;
}
