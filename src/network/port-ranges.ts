/** Ports and ranges of ports, and how a host range and a container range fit together. */
import type { FieldError } from "../problem.ts";
import { ProblemError } from "../problem.ts";

export interface PortRange {
  first: number;
  last: number;
}

export const rangeSize = (range: PortRange): number => range.last - range.first + 1;

/**
 * @param pointer JSON pointer of the field, for the error.
 * @throws ProblemError `invalid_request` if it is neither a port nor a rising range.
 */
export function parsePortRange(value: number | string, pointer: string): PortRange {
  const match = /^(\d{1,5})(?:-(\d{1,5}))?$/.exec(String(value));
  const first = Number(match?.[1]);
  const last = Number(match?.[2] ?? match?.[1]);
  if (!match || first < 1 || last > 65535 || first > last) {
    const errors: FieldError[] = [
      { pointer, message: 'must be a port from 1 to 65535 or a rising range such as "8000-8010"' },
    ];
    throw new ProblemError("invalid_request", `${value} is no port and no port range.`, errors);
  }
  return { first, last };
}

/** `8080` or `"8000-8010"`. */
export function formatPortRange(range: PortRange): number | string {
  return range.first === range.last ? range.first : `${range.first}-${range.last}`;
}

export type PortMapping =
  /** Each host port to the container port beside it. */
  | { kind: "each"; pairs: { hostPort: number; containerPort: number }[] }
  /** One host port out of the range, to the one container port. */
  | { kind: "pick"; from: PortRange; containerPort: number };

/**
 * Equal ranges map one to one; a host range to one container port picks a free one; a null host range
 * picks from `ephemeral`.
 *
 * @throws ProblemError `range_mismatch` for anything else.
 */
export function mapPorts(
  host: PortRange | null,
  container: PortRange,
  ephemeral: PortRange,
): PortMapping {
  if (rangeSize(container) === 1 && (host === null || rangeSize(host) > 1)) {
    return { kind: "pick", from: host ?? ephemeral, containerPort: container.first };
  }
  if (host === null || rangeSize(host) !== rangeSize(container)) {
    throw mismatch(host, container);
  }
  const pairs = Array.from({ length: rangeSize(host) }, (_, index) => ({
    hostPort: host.first + index,
    containerPort: container.first + index,
  }));
  return { kind: "each", pairs };
}

function mismatch(host: PortRange | null, container: PortRange): ProblemError {
  const hostText = host === null ? "hostPort 0" : `${rangeSize(host)} host port(s)`;
  return new ProblemError(
    "range_mismatch",
    `${hostText} cannot map to ${rangeSize(container)} container ports: give ranges of equal length, or a single container port.`,
    [
      {
        pointer: "/hostPort",
        message: `must hold ${rangeSize(container)} ports, as containerPort does`,
      },
    ],
  );
}
