/**
 * Somebody else's eBPF program on a device: counts packets and lets them go on, for as long as this
 * process lives. Runs on Deno, whose FFI reaches bpf(2); iproute2 of Debian 12 knows no tcx.
 *
 *     foreign-program.ts DEVICE ingress|egress FILE    writes what it counted to FILE
 */
import { readFileSync, writeFileSync } from "node:fs";

const systemCalls: Record<string, number> = { x86_64: 321, aarch64: 280 };
/** enum bpf_cmd, bpf_map_type, bpf_prog_type and bpf_attach_type of linux/bpf.h. */
const commands = { createMap: 0, lookUp: 1, loadProgram: 5, createLink: 28 };
const arrayMap = 2;
const classifier = 3;
const hooks: Record<string, number> = { ingress: 46, egress: 47 };

const libc = Deno.dlopen("libc.so.6", {
  syscall: { parameters: ["i64", "i32", "buffer", "u32"], result: "i64" },
});

const addressOf = (bytes: Uint8Array<ArrayBuffer>): bigint =>
  Deno.UnsafePointer.value(Deno.UnsafePointer.of(bytes));

/** bpf(2) with the given members of union bpf_attr, by offset: 32 bits for numbers, else 64. */
function bpf(command: number, members: Record<number, number | bigint>): number {
  const bytes = new Uint8Array(128);
  const view = new DataView(bytes.buffer);
  for (const [offset, value] of Object.entries(members))
    if (typeof value === "bigint") view.setBigUint64(Number(offset), value, true);
    else view.setUint32(Number(offset), value, true);
  const call = systemCalls[Deno.build.arch];
  if (call === undefined) throw new Error(`no bpf(2) on ${Deno.build.arch}`);
  const result = Number(libc.symbols.syscall(BigInt(call), command, bytes, bytes.length));
  if (result < 0) throw new Error(`bpf command ${command} failed`);
  return result;
}

/** `struct bpf_insn`: code, registers, offset, immediate. */
function instructions(list: [number, number, number, number, number][]): Uint8Array<ArrayBuffer> {
  const bytes = new Uint8Array(list.length * 8);
  const view = new DataView(bytes.buffer);
  for (const [index, [code, to, from, offset, immediate]] of list.entries()) {
    view.setUint8(index * 8, code);
    view.setUint8(index * 8 + 1, to | (from << 4));
    view.setInt16(index * 8 + 2, offset, true);
    view.setInt32(index * 8 + 4, immediate, true);
  }
  return bytes;
}

const [device = "", hook = "", file = ""] = process.argv.slice(2);
// /sys may be another namespace's.
const line = new Deno.Command("ip", { args: ["-o", "link", "show", device] }).outputSync();
const ifindex = Number.parseInt(new TextDecoder().decode(line.stdout), 10);
const map = bpf(commands.createMap, { 0: arrayMap, 4: 4, 8: 8, 12: 1 });
const code = instructions([
  [0x62, 10, 0, -4, 0], // *(u32 *)(r10 - 4) = 0
  [0xbf, 2, 10, 0, 0], // r2 = r10
  [0x07, 2, 0, 0, -4], // r2 -= 4
  [0x18, 1, 1, 0, map], // r1 = map
  [0, 0, 0, 0, 0],
  [0x85, 0, 0, 0, 1], // r0 = bpf_map_lookup_elem(r1, r2)
  [0x15, 0, 0, 2, 0], // if r0 == 0, two on
  [0xb7, 1, 0, 0, 1], // r1 = 1
  [0xdb, 0, 1, 0, 0], // lock *(u64 *)r0 += r1
  [0xb7, 0, 0, 0, -1], // r0 = TCX_NEXT
  [0x95, 0, 0, 0, 0], // exit
]);
const license = new TextEncoder().encode("GPL\0");
const program = bpf(commands.loadProgram, {
  0: classifier,
  4: code.length / 8,
  8: addressOf(code),
  16: addressOf(license),
  48: new DataView(new TextEncoder().encode("policer\0").buffer).getBigUint64(0, true),
});
bpf(commands.createLink, { 0: program, 4: ifindex, 8: hooks[hook] ?? 0 });
const key = new Uint8Array(4);
const value = new Uint8Array(8);
const tell = (): void => {
  bpf(commands.lookUp, { 0: map, 8: addressOf(key), 16: addressOf(value) });
  const count = new DataView(value.buffer).getBigUint64(0, true);
  writeFileSync(file, `${process.pid} ${count}\n`);
};
tell();
readFileSync(file);
setInterval(tell, 20);
