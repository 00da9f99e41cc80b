/** Starts the demo's server and clients in their namespaces, and hears what they report. */
import { type ChildProcessWithoutNullStreams, spawn } from "node:child_process";
import { createInterface } from "node:readline";
import { FailedError } from "../errors.ts";
import { type Head, parseReport, type Report } from "./peer.ts";
import type { Place, PlaceName } from "./place.ts";

/** A program in a place that reports one line after another. */
export class Requester {
  readonly #child: ChildProcessWithoutNullStreams;
  readonly #lines: AsyncIterator<string>;
  #complaint = "";

  constructor(place: Place, from: PlaceName, args: string[]) {
    this.#child = spawn("nsenter", place.inside(from, args), { detached: true });
    this.#child.stderr.setEncoding("utf8").on("data", (text: string) => {
      this.#complaint += text;
    });
    this.#lines = createInterface({ input: this.#child.stdout })[Symbol.asyncIterator]();
  }

  async line(): Promise<string> {
    const { value, done } = await this.#lines.next();
    if (done !== true) return value;
    throw new FailedError(`no answer: ${this.#complaint.trim()}`);
  }

  async report(): Promise<Report> {
    return parseReport(await this.line());
  }

  async head(): Promise<Head> {
    const { head } = await this.report();
    if (head === undefined) throw new FailedError("the demo's client told no connection");
    return head;
  }

  /** Lets it close its connection and end. */
  finish(): void {
    this.#child.stdin.end();
  }

  /** It goes on by itself until its namespace goes. */
  leave(): void {
    this.#child.stdin.destroy();
    this.#child.stdout.destroy();
    this.#child.stderr.destroy();
    this.#child.unref();
  }
}
