/** How the holder gets from one state's host ports to the next one's, and back. */
import type { HolderBinding, HolderUpdate } from "../holder/types.ts";
import type { State } from "./state.ts";
import { holderBindings } from "./wanted.ts";

export interface Reservation {
  /** Reserves what is new before anything is given up, unless the new port needs the old one's. */
  forward: HolderUpdate;
  /** Takes `forward` back. */
  back: HolderUpdate;
}

const isSame = (a: HolderBinding, b: HolderBinding): boolean =>
  a.targetAddress === b.targetAddress &&
  a.targetPort === b.targetPort &&
  (a.from ?? []).join() === (b.from ?? []).join();

const retargeted = ({ key, targetAddress, targetPort, from = [] }: HolderBinding) => ({
  key,
  targetAddress,
  targetPort,
  from,
});

/** What two bindings can't both have where one of them has every address. */
const socketOf = ({ protocol, hostPort }: HolderBinding): string => `${protocol}/${hostPort}`;

/**
 * What must be reserved before a change is made.
 *
 * @param held Keys the holder really has: another process may have taken a port while it was away,
 *   and a port without reservation is reserved with the change that touches it.
 */
export function reservationOf(before: State, after: State, held: Set<string>): Reservation {
  const [old, wanted] = [holderBindings(before), holderBindings(after)];
  const forward: HolderUpdate = { add: [], remove: [], retarget: [] };
  const back: HolderUpdate = { add: [], remove: [], retarget: [] };
  for (const [key, binding] of wanted) {
    const known = old.get(key);
    if (known && isSame(known, binding)) continue;
    if (known && held.has(key)) {
      forward.retarget.push(retargeted(binding));
      back.retarget.push(retargeted(known));
    } else {
      forward.add.push(binding);
      back.remove.push(key);
    }
  }
  const needed = new Set(forward.add.map(socketOf));
  for (const [key, binding] of old)
    if (!wanted.has(key) && held.has(key) && needed.has(socketOf(binding))) {
      forward.remove.push(key);
      back.add.push(binding);
    }
  return { forward, back };
}

/** Keys of host ports that are given up once a change is made. */
export function givenUp(before: State, after: State): string[] {
  const wanted = holderBindings(after);
  return [...holderBindings(before).keys()].filter((key) => !wanted.has(key));
}
