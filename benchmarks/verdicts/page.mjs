// How a page of edgepress does in a browser: time to load, requests, console, horizontal scrolling, and axe-core's findings.
//
//     npm install puppeteer-core axe-core && node benchmarks/verdicts/page.mjs RUN_DIR/report.html      (needs /usr/bin/chromium)
//
// At the width of a laptop in light colours and at that of a phone in dark ones, with every section open.
import fs from "fs";
import path from "path";
import puppeteer from "puppeteer-core";

const axe = fs.readFileSync("node_modules/axe-core/axe.min.js", "utf8");
const browser = await puppeteer.launch({ executablePath: "/usr/bin/chromium", args: ["--no-sandbox", "--disable-gpu"] });
let findings = 0;
for (const [width, height, scheme] of [[1280, 900, "light"], [390, 844, "dark"]]) {
  const page = await browser.newPage();
  const said = [];
  const requests = [];
  page.on("console", (message) => said.push(message.text()));
  page.on("pageerror", (error) => said.push(String(error)));
  page.on("request", (request) => requests.push(request.url()));
  await page.setBypassCSP(true); // the page forbids scripts, and axe-core is one
  await page.setViewport({ width, height });
  await page.emulateMediaFeatures([{ name: "prefers-color-scheme", value: scheme }]);
  await page.goto("file://" + path.resolve(process.argv[2]), { waitUntil: "load" });
  const loaded = await page.evaluate(() => performance.getEntriesByType("navigation")[0].loadEventEnd);
  await page.evaluate(() => document.querySelectorAll("details").forEach((section) => (section.open = true)));
  const scrolls = await page.evaluate(() => document.documentElement.scrollWidth > document.documentElement.clientWidth);
  await page.addScriptTag({ content: axe });
  const found = await page.evaluate(async () => await window.axe.run());
  console.log(`${width} ${scheme}: loaded in ${Math.round(loaded)} ms, ${requests.length} request(s), console ${JSON.stringify(said)}`);
  console.log(`  scrolls sideways: ${scrolls}; axe-core: ${found.passes.length} rules passed, ${found.violations.length} violated`);
  for (const rule of found.violations) console.log(`  ${rule.impact} ${rule.id}: ${rule.help} (${rule.nodes.length})`);
  findings += found.violations.length + said.length + (requests.length - 1) + scrolls;
}
await browser.close();
process.exit(findings ? 1 : 0);
