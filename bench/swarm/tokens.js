// Curves below the table of locust's Tokens tab: one a figure, a line a tenant, of the last ten seconds at each moment.
const CURVES = {ttft_p95_ms: "TTFT p95 (ms)", itl_p95_ms: "ITL p95 (ms)", tokens_per_s: "Tokens/s", goodput_rps: "Goodput/s"};
const COLORS = ["#00ca5a", "#ff9f00", "#9966cc", "#0099ff", "#ff6d6d", "#8e4585", "#00a39b", "#b0b000"];
const WIDTH = 600, HEIGHT = 180, LEFT = 60, BOTTOM = 20;

const place = document.createElement("div");
place.style.cssText = "display:flex;flex-wrap:wrap;gap:16px;margin:16px 0 48px;font:13px sans-serif;color:#888";

function line(points, color, x, y) {
  const path = points.map(([at, value], i) => `${i ? "L" : "M"}${x(at).toFixed(1)} ${y(value).toFixed(1)}`).join("");
  return `<path d="${path}" fill="none" stroke="${color}" stroke-width="2"/>`;
}

function escaped(words) {
  return String(words).replace(/[&<>]/g, (letter) => `&#${letter.charCodeAt(0)};`);
}

function text(x, y, words, anchor, color = "currentColor") {
  return `<text x="${x}" y="${y}" text-anchor="${anchor}" font-size="11" fill="${color}">${escaped(words)}</text>`;
}

function chart(title, key, history, tenants) {
  const lines = tenants.map((tenant) => history.filter((point) => point.tenants[tenant]?.[key] != null)
    .map((point) => [point.at_s, point.tenants[tenant][key]]));
  const most = Math.max(...lines.flat().map(([, value]) => value), 1e-9) * 1.1;
  const first = history[0].at_s, last = history[history.length - 1].at_s;
  const x = (at) => LEFT + (WIDTH - LEFT - 10) * (at - first) / (last - first || 1);
  const y = (value) => (HEIGHT - BOTTOM) * (1 - value / most) + 5;
  const grid = [0, 0.5, 1].map((share) => {
    const value = most * share;
    return `<path d="M${LEFT} ${y(value)}H${WIDTH - 10}" stroke="#8884"/>` + text(LEFT - 6, y(value) + 4, value.toLocaleString("en", {maximumSignificantDigits: 3}), "end");
  }).join("");
  const names = tenants.map((tenant, i) => text(WIDTH - 14, 16 + 13 * i, tenant, "end", COLORS[i % COLORS.length])).join("");
  const times = text(LEFT, HEIGHT, `${first.toFixed(0)} s`, "start") + text(WIDTH - 10, HEIGHT, `${last.toFixed(0)} s`, "end");
  const drawn = lines.map((points, i) => line(points, COLORS[i % COLORS.length], x, y)).join("");
  return `<div><b>${title}</b><br><svg width="${WIDTH}" height="${HEIGHT + 6}">${grid}${drawn}${names}${times}</svg></div>`;
}

async function draw() {
  // Locust's page makes its parts anew with each change of tab.
  const table = document.querySelector("#root table");
  if (new URLSearchParams(location.search).get("tab") !== "tokens" || !table) return place.remove();
  const around = table.closest(".MuiContainer-root");
  if (!around.contains(place)) around.appendChild(place);
  const {history, warning} = await (await fetch("./tokens.json")).json();
  const tenants = history.length ? Object.keys(history[history.length - 1].tenants) : [];
  const charts = history.length ? Object.entries(CURVES).map(([key, title]) => chart(title, key, history, tenants)) : [];
  const told = warning ? `<b style="color:#ff6d6d;flex-basis:100%">${escaped(warning)}</b>` : "";
  place.innerHTML = told + charts.join("");
}

setInterval(() => draw().catch(() => {}), 1000);
