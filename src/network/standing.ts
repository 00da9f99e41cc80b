/** What the host's own connections rely on: whose port they asked for, and whose address they were given. */
import type { LinkInfo, Standing } from "../datapath/types.ts";
import type { State } from "./state.ts";

/**
 * The ports and endpoints that there are. An endpoint is not where its namespace is gone and its device
 * with it: nobody is there any more to finish a connection with. A namespace that only lost its name goes on.
 */
export function standing(state: State, links: LinkInfo[]): Standing {
  const devices = new Set(links.map(({ name }) => name));
  const endpoints = state.endpoint
    .values()
    .filter(
      ({ sandboxId, hostInterface }) =>
        state.sandbox.expect(sandboxId).lostSince === null || devices.has(hostInterface),
    );
  return {
    ports: state.port.values().map(({ id }) => id),
    endpoints: endpoints.map(({ id }) => id),
  };
}
