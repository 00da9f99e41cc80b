/** What commands print: tables for people, JSON for programs, ids for scripts. */
import Table from "cli-table3";

export const shortId = (id: string): string => id.slice(0, 12);

/** Text from elsewhere must not move the cursor or colour the terminal. */
export function printable(text: string): string {
  // biome-ignore lint/suspicious/noControlCharactersInRegex: they are what is replaced.
  return text.replace(/[\u0000-\u001f\u007f-\u009f]/g, "?");
}

export function printLine(text = ""): void {
  process.stdout.write(`${text}\n`);
}

export function printJson(value: unknown): void {
  printLine(JSON.stringify(value, null, 2));
}

const noBorders = {
  top: "",
  "top-mid": "",
  "top-left": "",
  "top-right": "",
  bottom: "",
  "bottom-mid": "",
  "bottom-left": "",
  "bottom-right": "",
  left: "",
  "left-mid": "",
  mid: "",
  "mid-mid": "",
  right: "",
  "right-mid": "",
  middle: "   ",
};

/** Columns under headings, without lines, as docker prints them. */
export function printTable(headings: string[], rows: string[][]): void {
  const table = new Table({
    head: headings,
    chars: noBorders,
    style: { head: [], border: [], "padding-left": 0, "padding-right": 0, compact: true },
  });
  for (const row of rows) table.push(row.map((cell) => printable(cell)));
  for (const line of table.toString().split("\n")) printLine(line.trimEnd());
}

interface Listed {
  id: string;
  labels: Record<string, string>;
}

export interface Column<T> {
  heading: string;
  cell: (item: T) => string;
}

/** One list as `--json`, `--quiet` or the table of `columns`. */
export function printList<T extends Listed>(
  items: T[],
  options: { json: boolean; quiet: boolean },
  columns: Column<T>[],
): void {
  if (options.json) {
    printJson(items);
    return;
  }
  if (options.quiet) {
    for (const item of items) printLine(shortId(item.id));
    return;
  }
  printTable(
    columns.map(({ heading }) => heading),
    items.map((item) => columns.map(({ cell }) => cell(item))),
  );
}
