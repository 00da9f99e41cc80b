/** `bench/chart.svg`: a bar for each case and variant, relative to the kernel path. */
import { caseNames, cases } from "./cases.ts";
import { type Report, ratio, setting } from "./report.ts";
import type { Variant } from "./topologies.ts";

const colours: Record<Variant, string> = {
  hop: "#b8b8b8",
  routed: "#8a8a8a",
  kernel: "#4878a8",
  fast: "#2a9d5c",
  "docker-proxy": "#c46a3a",
  direct: "#b8b8b8",
};
const layout = {
  left: 210,
  width: 860,
  bar: 14,
  gap: 18,
  top: 56,
  perRatio: 200,
  limit: 3,
} as const;

const escaped = (text: string) =>
  text.replaceAll("&", "&amp;").replaceAll("<", "&lt;").replaceAll('"', "&quot;");

function text(x: number, y: number, content: string, more = ""): string {
  return `<text x="${x}" y="${y}" ${more}>${escaped(content)}</text>`;
}

export function chart(report: Report): string {
  const shapes: string[] = [];
  let y: number = layout.top;
  for (const name of caseNames) {
    const of = report.results.filter((result) => result.case === name);
    if (of.length === 0) continue;
    const { title, unit } = cases[name];
    const middle = y + (of.length * layout.bar) / 2 + 4;
    shapes.push(text(layout.left - 10, middle, `${title}`, 'text-anchor="end"'));
    for (const result of of) {
      const times = ratio(report.results, result) ?? (result.variant === "kernel" ? 1 : 0);
      const width = Math.min(times, layout.limit) * layout.perRatio;
      const label = `${result.variant} ${result.median} ${unit} (${times.toFixed(2)} ×)`;
      shapes.push(
        `<rect x="${layout.left}" y="${y}" width="${width.toFixed(1)}" height="${layout.bar - 2}" fill="${colours[result.variant]}"/>`,
        text(layout.left + width + 6, y + layout.bar - 4, label, 'font-size="10"'),
      );
      y += layout.bar;
    }
    y += layout.gap;
  }
  const one = layout.left + layout.perRatio;
  return `<svg xmlns="http://www.w3.org/2000/svg" width="${layout.width + 160}" height="${y + 10}" font-family="sans-serif" font-size="12">
<title>How many times better than natbridge's kernel path</title>
<rect width="100%" height="100%" fill="#ffffff"/>
${text(16, 22, "How many times better than natbridge's kernel path", 'font-size="15"')}
${text(16, 40, setting(report), 'font-size="10" fill="#555555"')}
<line x1="${one}" x2="${one}" y1="${layout.top - 6}" y2="${y - layout.gap}" stroke="#4878a8" stroke-dasharray="3 3"/>
${shapes.join("\n")}
</svg>
`;
}
