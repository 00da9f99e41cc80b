/** The event log: numbered over restarts, kept in memory as far as it is kept on disk. */
import { keptEvents, type Store } from "../store/store.ts";
import type { EventLog, NatbridgeEvent } from "./events.ts";

export type NewEvent = Omit<NatbridgeEvent, "id" | "time">;

/** Something that was put right, in words, and what it is part of. */
export interface Repair {
  message: string;
  object: NewEvent["object"];
}

export const repairEvents = (repairs: Repair[]): NewEvent[] =>
  repairs.map(({ message, object }) => ({ type: "reconcile.repaired", object, message }));

export class DurableEventLog implements EventLog {
  readonly #store: Store;
  readonly #events: NatbridgeEvent[];
  readonly #listeners = new Set<(event: NatbridgeEvent) => void>();
  #last: number;

  constructor(store: Store) {
    this.#store = store;
    this.#events = store.loadEvents();
    this.#last = this.#events.at(-1)?.id ?? 0;
  }

  since(lastId: number): NatbridgeEvent[] | null {
    const oldest = this.#events[0]?.id ?? this.#last + 1;
    if (lastId < oldest - 1 || lastId > this.#last) return null;
    return this.#events.filter(({ id }) => id > lastId);
  }

  lastId(): number {
    return this.#last;
  }

  subscribe(listener: (event: NatbridgeEvent) => void): () => void {
    this.#listeners.add(listener);
    return () => {
      this.#listeners.delete(listener);
    };
  }

  /** Numbers events for the transaction that makes them durable; `tell` follows once it has. */
  number(events: NewEvent[], time: string): NatbridgeEvent[] {
    return events.map((event, index) => ({ ...event, id: this.#last + 1 + index, time }));
  }

  /** Tells the listeners of events that are durable. */
  tell(events: NatbridgeEvent[]): void {
    for (const event of events) {
      this.#last = event.id;
      this.#events.push(event);
      for (const listener of this.#listeners) listener(event);
    }
    if (this.#events.length > keptEvents) this.#events.splice(0, this.#events.length - keptEvents);
  }

  /** Records and tells events that belong to no change of the desired state. */
  record(events: NewEvent[], time: string): void {
    if (events.length === 0) return;
    const numbered = this.number(events, time);
    this.#store.commit({ put: {}, delete: {}, events: numbered });
    this.tell(numbered);
  }
}
