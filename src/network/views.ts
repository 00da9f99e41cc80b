/** From a record to the object the API answers: what is known of it at the moment is its status. */

import { isOfProcess } from "./endpoint-standing.ts";
import type { Condition, Endpoint, Network, Port, Sandbox } from "./model.ts";
import type { EndpointRecord, NetworkRecord, PortRecord, SandboxRecord } from "./records.ts";
import type { State } from "./state.ts";

/** What the last reconciliation found of devices and ports. */
export interface Observed {
  /** ifindex of each endpoint's host end, by endpoint id. */
  ifindexes: Map<string, number>;
  /** How often the carrier of its host end had changed when an endpoint was last looked at, by id. */
  carriers: Map<string, number>;
  /** Why an object is not as wanted, by id. */
  failures: Map<string, { reason: string; message: string; since: string }>;
}

function ready(id: string, createdAt: string, observed: Observed): Condition {
  const failure = observed.failures.get(id);
  return failure
    ? { type: "Ready", status: "false", ...failure }
    : { type: "Ready", status: "true", reason: "Reconciled", message: "", since: createdAt };
}

function lostMessage(sandbox: SandboxRecord, observed: Observed): string {
  const { id, netns, key } = sandbox;
  const refused = observed.failures.get(id);
  const gone = `The network namespace ${key} is gone`;
  const anew = "delete its endpoints, or create them anew in another";
  if (refused) return `${gone}, and ${refused.message}: ${anew}.`;
  return isOfProcess(sandbox)
    ? `${gone} with its process, for good: ${anew}.`
    : `${gone}: its endpoints come back with the next one at ${netns}.`;
}

function sandboxPresent(sandbox: SandboxRecord, observed: Observed): Condition {
  return sandbox.lostSince === null
    ? {
        type: "SandboxPresent",
        status: "true",
        reason: "Found",
        message: "",
        since: sandbox.createdAt,
      }
    : {
        type: "SandboxPresent",
        status: "false",
        reason: "SandboxLost",
        message: lostMessage(sandbox, observed),
        since: sandbox.lostSince,
      };
}

export function networkView(network: NetworkRecord, observed: Observed): Network {
  const conditions = [ready(network.id, network.createdAt, observed)];
  return { ...network, status: { conditions } };
}

export function sandboxView(state: State, sandbox: SandboxRecord, observed: Observed): Sandbox {
  const { lostSince: _lostSince, ...rest } = sandbox;
  return {
    ...rest,
    endpoints: state.endpoint
      .of(sandbox.id)
      .map(({ id, name, interface: device }) => ({ id, name, interface: device })),
    status: { conditions: [sandboxPresent(sandbox, observed)] },
  };
}

export function endpointView(state: State, endpoint: EndpointRecord, observed: Observed): Endpoint {
  const sandbox = state.sandbox.expect(endpoint.sandboxId);
  return {
    ...endpoint,
    network: state.network.expect(endpoint.networkId).name,
    sandbox: sandbox.name,
    ifindex: observed.ifindexes.get(endpoint.id) ?? 0,
    status: {
      conditions: [
        ready(endpoint.id, endpoint.createdAt, observed),
        sandboxPresent(sandbox, observed),
      ],
    },
  };
}

export function portView(
  state: State,
  port: PortRecord,
  servedBy: Port["servedBy"],
  observed: Observed,
): Port {
  return {
    ...port,
    endpoint: state.endpoint.expect(port.endpointId).name,
    servedBy,
    status: { conditions: [ready(port.id, port.createdAt, observed)] },
  };
}
