/** What is kept of each object: the API's object without what is read at the moment of asking. */
import { z } from "zod";
import { endpointSchema, networkSchema, portSchema, sandboxSchema } from "./model.ts";

export const networkRecordSchema = networkSchema.omit({ status: true });
export const sandboxRecordSchema = sandboxSchema.omit({ status: true, endpoints: true }).extend({
  /** When the namespace was found gone; null while it is there. */
  lostSince: z.iso.datetime().nullable(),
});
export const endpointRecordSchema = endpointSchema.omit({
  status: true,
  network: true,
  sandbox: true,
  ifindex: true,
});
export const portRecordSchema = portSchema.omit({ status: true, endpoint: true, servedBy: true });

export type NetworkRecord = z.infer<typeof networkRecordSchema>;
export type SandboxRecord = z.infer<typeof sandboxRecordSchema>;
export type EndpointRecord = z.infer<typeof endpointRecordSchema>;
export type PortRecord = z.infer<typeof portRecordSchema>;

export interface RecordsByKind {
  network: NetworkRecord;
  sandbox: SandboxRecord;
  endpoint: EndpointRecord;
  port: PortRecord;
}
export type Kind = keyof RecordsByKind;
export const kinds = ["network", "sandbox", "endpoint", "port"] as const satisfies readonly Kind[];
