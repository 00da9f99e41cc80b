/** A holder in memory, for tests: bindings without sockets. */
import { addressOf, familyOf, isWildcard } from "../network/addresses.ts";
import {
  type Holder,
  type HolderBinding,
  type HolderBindingState,
  HolderError,
  type HolderListing,
  type HolderUpdate,
} from "./types.ts";

export class FakeHolder implements Holder {
  readonly bindings = new Map<string, HolderBindingState>();
  /** Keys that other processes hold. */
  readonly taken = new Set<string>();
  /** It does not answer. */
  isDead = false;

  #requireLife(): void {
    if (this.isDead) throw new HolderError("unavailable", "no holder answers");
  }

  async list(): Promise<HolderBindingState[]> {
    this.#requireLife();
    return [...this.bindings.values()].map((binding) => ({ ...binding }));
  }

  async inspect(): Promise<HolderListing> {
    const places = { open: 0, capacity: 1000, evicted: 0, refused: 0 };
    const limits = { files: 4096, connections: places, sessions: places };
    return { bindings: await this.list(), limits };
  }

  async update({ add, remove, retarget }: HolderUpdate): Promise<void> {
    this.#requireLife();
    for (const { key } of retarget)
      if (!this.bindings.has(key))
        throw new HolderError("other", `there is no binding ${key} to retarget`, key);
    for (const binding of add)
      if (this.taken.has(binding.key) || this.#isInTheWay(binding, remove))
        throw new HolderError("address_in_use", `${binding.key} is in use`, binding.key);
    for (const key of remove) this.bindings.delete(key);
    for (const binding of add) this.bindings.set(binding.key, fresh(binding));
    for (const change of retarget) {
      const known = this.bindings.get(change.key);
      if (known) this.bindings.set(change.key, { ...known, ...change });
    }
  }

  /** As for sockets: one on every address leaves none of its family. */
  #isInTheWay({ key, protocol, hostAddress, hostPort }: HolderBinding, remove: string[]): boolean {
    const isWild = (address: string): boolean => isWildcard(addressOf(address));
    return [...this.bindings.values()].some((other) => {
      if (remove.includes(other.key)) return false;
      if (other.key === key) return true;
      const isSameSocket =
        other.protocol === protocol &&
        other.hostPort === hostPort &&
        familyOf(other.hostAddress) === familyOf(hostAddress);
      return isSameSocket && (isWild(hostAddress) || isWild(other.hostAddress));
    });
  }

  #tell = (): void => undefined;

  onLost(listener: () => void): void {
    this.#tell = listener;
  }

  /** As killed: what it held is free. */
  die(): void {
    this.isDead = true;
    this.bindings.clear();
    this.#tell();
  }

  close(): void {}

  async shutdown(): Promise<void> {
    this.isDead = true;
    this.bindings.clear();
  }
}

function fresh(binding: HolderBinding): HolderBindingState {
  return { ...binding, connections: 0, active: 0, bytes: 0, refused: 0, lastError: null };
}
