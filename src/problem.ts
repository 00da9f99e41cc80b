/** The one table of error codes, and the error that carries one. RFC 9457 gives the wire form. */

interface ProblemKind {
  status: 400 | 401 | 403 | 404 | 405 | 409 | 410 | 413 | 415 | 500 | 503;
  title: string;
}

/** Every code the API can answer, its HTTP status and its title. Codes are never renamed. */
export const problems = {
  invalid_request: { status: 400, title: "Invalid request" },
  ambiguous_reference: { status: 400, title: "Ambiguous reference" },
  address_outside_subnet: { status: 400, title: "Address outside the subnet" },
  static_address_not_allowed: { status: 400, title: "Fixed address not allowed" },
  sandbox_invalid: { status: 400, title: "Not a usable network namespace" },
  range_mismatch: { status: 400, title: "Port ranges do not match" },
  unauthorized: { status: 401, title: "Unauthorized" },
  insufficient_scope: { status: 403, title: "Insufficient scope" },
  predefined_network: { status: 403, title: "Predefined network" },
  not_found: { status: 404, title: "Not found" },
  network_not_found: { status: 404, title: "Network not found" },
  endpoint_not_found: { status: 404, title: "Endpoint not found" },
  port_not_found: { status: 404, title: "Published port not found" },
  sandbox_not_found: { status: 404, title: "Sandbox not found" },
  method_not_allowed: { status: 405, title: "Method not allowed" },
  name_taken: { status: 409, title: "Name taken" },
  port_in_use: { status: 409, title: "Host port in use" },
  address_in_use: { status: 409, title: "Address in use" },
  subnet_overlap: { status: 409, title: "Subnet overlaps" },
  pool_exhausted: { status: 409, title: "Pool exhausted" },
  network_in_use: { status: 409, title: "Network in use" },
  interface_exists: { status: 409, title: "Interface exists" },
  immutable_field: { status: 409, title: "Immutable field" },
  events_expired: { status: 410, title: "Events expired" },
  body_too_large: { status: 413, title: "Body too large" },
  unsupported_media_type: { status: 415, title: "Unsupported media type" },
  not_ready: { status: 503, title: "Not ready" },
  fast_path_unavailable: { status: 503, title: "Fast path unavailable" },
  internal: { status: 500, title: "Internal error" },
} as const satisfies Record<string, ProblemKind>;

export type ProblemCode = keyof typeof problems;

/** A field of the request that is wrong: a JSON pointer (RFC 6901) and what to do about it. */
export interface FieldError {
  pointer: string;
  message: string;
}

/** A refusal with a stable code. `message` names what collided and what to do. */
export class ProblemError extends Error {
  readonly code: ProblemCode;
  readonly errors: FieldError[];

  constructor(code: ProblemCode, detail: string, errors: FieldError[] = []) {
    super(detail);
    this.name = "ProblemError";
    this.code = code;
    this.errors = errors;
  }

  get status(): number {
    return problems[this.code].status;
  }
}
