/** What `GET /v1/rules` answers: each network and port as nftables element and as iptables line. */
import { z } from "zod";

export const ruleDescriptionSchema = z.object({
  kind: z.enum(["network", "port"]),
  id: z.string(),
  name: z.string(),
  /** What sets and maps of the kernel's table `inet natbridge` hold of it at this moment. */
  nftables: z.array(z.string()),
  /** iptables lines that would do the same. */
  iptables: z.array(z.string()),
});

export type RuleDescription = z.infer<typeof ruleDescriptionSchema>;
