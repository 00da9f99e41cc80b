import { readFileSync } from "node:fs";
import { suite } from "uvu";
import * as assert from "uvu/assert";
import { z } from "zod";
import { describeApi } from "../../src/api/describe.ts";
import { problemResponse } from "../../src/api/problem.ts";
import { subnetSchema } from "../../src/network/texts.ts";
import { type ProblemCode, problems } from "../../src/problem.ts";

const test = suite("problem table");
const codes = Object.keys(problems) as ProblemCode[];
const root = new URL("../../", import.meta.url);

const documentSchema = z.object({
  paths: z.record(
    z.string(),
    z.record(
      z.string(),
      z.object({ responses: z.record(z.string(), z.object({ description: z.string() })) }),
    ),
  ),
  components: z.object({
    schemas: z.object({
      Problem: z.object({
        properties: z.object({ code: z.object({ enum: z.array(z.string()) }) }),
      }),
    }),
  }),
});
const document = documentSchema.parse(JSON.parse(JSON.stringify(describeApi())));

test("each code is answered with its own status and title", async () => {
  for (const code of codes) {
    const response = problemResponse(code, "detail");
    assert.is(response.status, problems[code].status);
    const body = z
      .object({ code: z.string(), title: z.string(), status: z.number() })
      .parse(await response.json());
    assert.equal(body, { code, title: problems[code].title, status: problems[code].status });
  }
});

test("the document lists exactly the table's codes", () => {
  assert.equal(
    [...document.components.schemas.Problem.properties.code.enum].sort(),
    [...codes].sort(),
  );
});

test("each call lists codes under their own status", () => {
  let seen = 0;
  for (const [path, calls] of Object.entries(document.paths)) {
    for (const [method, { responses }] of Object.entries(calls)) {
      for (const [status, { description }] of Object.entries(responses)) {
        if (Number(status) < 400) continue;
        for (const [, code] of description.matchAll(/`([a-z_]+)`/g)) {
          const known = codes.find((item) => item === code);
          assert.ok(known, `${method} ${path}: ${code}`);
          assert.is(problems[known].status, Number(status), `${method} ${path}: ${code}`);
          seen += 1;
        }
      }
    }
  }
  assert.ok(seen > 100);
});

/** These are answered outside the calls the document lists. */
const outside = new Set<ProblemCode>(["not_found", "method_not_allowed"]);

test("each code is answered by some call", () => {
  const text = JSON.stringify(document.paths);
  for (const code of codes) {
    if (!outside.has(code)) assert.ok(text.includes(`\`${code}\``), `${code} is in no call`);
  }
});

test("the committed openapi.json is what the routes say", () => {
  const committed = readFileSync(new URL("openapi.json", root), "utf8");
  assert.ok(committed === `${JSON.stringify(describeApi(), null, 2)}\n`, "run scripts/openapi.ts");
});

test("the README's table has exactly the codes that exist", () => {
  const path = new URL("README.md", root);
  const section = /## (?:Errors|Error codes)\n([\s\S]*?)(?:\n## |$)/.exec(
    readFileSync(path, "utf8"),
  )?.[1];
  assert.ok(section, "no section Errors");
  const named = [...section.matchAll(/`([a-z]+(?:_[a-z]+)+|internal|unauthorized)`/g)].map(
    ([, code]) => code,
  );
  assert.equal([...new Set(named)].sort(), [...codes].sort());
});

test("every call has an operationId of its own", () => {
  const { paths } = describeApi();
  const ids = Object.values(paths ?? {}).flatMap((methods) =>
    Object.values(methods).map((call: { operationId?: string }) => call.operationId),
  );
  assert.ok(ids.length >= 30);
  assert.is(new Set(ids).size, ids.length);
  assert.not.ok(ids.includes(undefined));
});

test("the description and the server agree on what texts there may be", () => {
  const text = JSON.stringify(describeApi().components?.schemas);
  for (const part of [
    '"oneOf":[{"required":["sandbox"]},{"required":["netns"]},{"required":["pid"]}]',
    '"propertyNames":{"minLength":1,"maxLength":128}',
    '"format":"ipv4"',
    '"format":"ipv6"',
  ])
    assert.ok(text.includes(part), part);
});

test("patterns are what the server itself goes by", () => {
  const matches = (schema: unknown, value: string): boolean => {
    const { anyOf } = JSON.parse(JSON.stringify(schema));
    return anyOf.some(({ pattern }: { pattern?: string }) =>
      pattern === undefined ? false : new RegExp(pattern, "u").test(value),
    );
  };
  const pattern = subnetSchema.meta();
  for (const good of ["10.0.0.0/8", "172.32.0.0/24", "fd32::/64", "2001:db8:1:2::/64", "::1:0/126"])
    assert.equal(
      [matches(pattern, good), subnetSchema.safeParse(good).success],
      [true, true],
      good,
    );
  for (const bad of [
    "",
    "10.0.0.0",
    "10.0.0/8",
    "256.0.0.0/8",
    "fd32:::/64",
    "fd32::/129",
    "1::2::/64",
  ])
    assert.equal([matches(pattern, bad), subnetSchema.safeParse(bad).success], [false, false], bad);
});

test.run();
