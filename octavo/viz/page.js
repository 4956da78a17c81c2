/* The page: where it is in the run, what is lit, and its controls. */

const $ = (id) => document.getElementById(id);
const data = JSON.parse($("run").textContent);
const replay = new Replay(data);

/* at: the frame. group: the cache group that tables and tree show. zoom: steps that the schedule shows, 0 for all. lit:
   what the pointer is on, or what was chosen by a click. */
const scene = { at: 0, state: null, owners: new Map(), fresh: new Set(), hits: new Set(), group: 0, zoom: 0, lit: null, chosen: null, showsAll: false, numArrived: 0 };

const make = (tag, className, words) => {
  const element = document.createElement(tag);
  if (className) element.className = className;
  if (words !== undefined) element.textContent = words;
  return element;
};

function prepare() {
  const { sizes, changes } = data;
  scene.requestOf = new Map();
  scene.firstOf = new Map();
  let highest = 0;
  for (const list of changes) for (const [letter, a, b, ...more] of list) {
    if (letter === "a") { scene.requestOf.set(b, a); scene.firstOf.set(a, b); }
    else if (letter === "z") {
      scene.requestOf.set(a, b);
      scene.firstOf.set(b, Math.min(a, scene.firstOf.get(b) ?? a));
      for (const table of more.slice(2)) highest = Math.max(highest, ...table);
    } else if (letter === "h") highest = Math.max(highest, ...more.flat());
    else if (letter === "k") scene.requestOf.set(b, more[0]);
    else if (letter === "g") highest = Math.max(highest, ...more);
    else if (letter === "c") highest = Math.max(highest, more[1]);
  }
  scene.numShown = highest && highest < .7 * sizes.num_blocks ? Math.min(sizes.num_blocks, Math.ceil((highest + 1) / 10) * 10) : sizes.num_blocks;
  scene.lines = [...replay.lines.values()].sort((a, b) => a.id - b.id);
  scene.group = Math.max(0, sizes.windows.lastIndexOf(null));
  scene.zoom = replay.last > 400 ? 200 : 0;
  const first = replay.figures.findIndex((figures) => figures.entries > figures.used);
  scene.start = first >= 0 ? first : replay.figures.reduce((best, figures, frame) => (figures.used > replay.figures[best].used ? frame : best), 0);
}

/* Go to a frame and show it everywhere. */
function go(frame) {
  scene.at = Math.max(0, Math.min(replay.last, frame));
  const state = scene.state = replay.seek(scene.at), changes = data.changes[scene.at];
  scene.owners = new Map();
  for (const [id, groups] of state.tables) groups.forEach((table, group) => table.forEach((block, place) => {
    if (!block) return;
    if (scene.owners.has(block)) scene.owners.get(block).push([id, group, place]);
    else scene.owners.set(block, [[id, group, place]]);
  }));
  for (const owners of scene.owners.values()) owners.sort((a, b) => a[0] - b[0]);
  scene.fresh = new Set(changes.flatMap((change) => (change[0] === "g" ? change.slice(3) : change[0] === "c" ? [change[4]] : [])));
  scene.hits = new Set(changes.flatMap((change) => (change[0] === "h" ? change.slice(3).flat() : [])));
  tell();
  draw();
}

function draw() {
  for (const view of [memory, tables, schedule, budget, tree]) view.draw();
}

function tell() {
  const { at } = scene, isEnd = at === replay.last;
  $("scrub").value = at;
  $("where").replaceChildren(...(isEnd ? [make("b", "", "end"), ` of ${plural(replay.last, "step")}`] : ["step ", make("b", "", data.steps[at].toLocaleString()), ` of ${data.steps[replay.last - 1].toLocaleString()}, at ${data.times[at].toFixed(3)} s`]));
  $("scrub").setAttribute("aria-valuetext", $("where").textContent);
  $("now").textContent = sentence();
  const news = newsOf(data.changes[at]);
  $("news").replaceChildren(...(news.length ? news : [["·", "Nothing but the next tokens."]]).slice(0, 200).map(([sign, words]) => {
    const item = make("li", "", words);
    item.dataset.sign = sign;
    return item;
  }));
  $("tree-none").hidden = scene.state.nodes.size + scene.state.evicted.length > 0;
  $("tables-none").hidden = scene.state.tables.size > 0;
  tellNumbers();
}

/* ---- Hover and choice ---- */

let hovered = null;
function hover(view, event) {
  const found = view?.at(event) ?? null, tip = $("tip");
  tip.hidden = !found;
  if (found) {
    if (found.key !== hovered) tip.replaceChildren(...found.lines.map((line, i) => make(i ? "div" : "b", "", line)));
    const { offsetWidth: width, offsetHeight: height } = tip, { clientX: x, clientY: y } = event;
    tip.style.left = Math.max(8, Math.min(x + 14, innerWidth - width - 8)) + "px";
    tip.style.top = (y + 18 + height > innerHeight ? Math.max(8, y - height - 12) : y + 18) + "px";
  }
  if ((found?.key ?? null) === hovered) return;
  hovered = found?.key ?? null;
  const next = found?.sequences ? found : scene.chosen;
  if (next === scene.lit) return;
  scene.lit = next;
  requestAnimationFrame(draw);
}

/* A click keeps what it is on lit, until the next click; on the schedule it goes to the step. */
function choose(found) {
  scene.chosen = found?.sequences && found.key !== scene.chosen?.key ? found : null;
  scene.lit = scene.chosen;
  if (found?.frame !== undefined) go(found.frame); else draw();
}

/* ---- Numbers ---- */

/* name, value, what it is made of, how it is written, top of its curve if that is fixed */
const TILES = [
  ["KV blocks in use", (f) => f.used / data.sizes.num_blocks, (f) => `${f.used.toLocaleString()} of ${data.sizes.num_blocks.toLocaleString()}; ${f.cached.toLocaleString()} more are cached`, percent, 1],
  ["Waste", (f) => (f.used ? 1 - f.slots / (f.used * data.sizes.block_size) : 0), () => "slots in used blocks that hold no token", percent],
  ["Contiguous memory", (f) => f.holders * perSequence(), (f) => `blocks, had each sequence reserved the maximum length${f.used ? `: ${(f.holders * perSequence() / f.used).toFixed(1)} times as many` : ""}`, (value) => Math.round(value).toLocaleString()],
  ["Sharing saves", (f) => (f.entries ? 1 - f.used / f.entries : 0), (f) => `${f.used.toLocaleString()} blocks in place of ${f.entries.toLocaleString()}`, percent],
  ["Batch", (f) => f.sequences, (f) => `sequences, ${plural(f.tokens, "token")} in this step`, (value) => value.toLocaleString()],
  ["Waiting", (f) => f.waiting, () => "sequences that no step computes yet", (value) => value.toLocaleString()],
];
const perSequence = () => data.sizes.num_groups * Math.ceil(data.sizes.max_model_len / data.sizes.block_size);

function buildNumbers() {
  for (const tile of TILES) {
    const box = $("tiles").appendChild(make("div", "tile"));
    const parts = [make("dd"), make("small"), make("canvas")], wrap = make("div", "curve");
    wrap.append(parts[2], make("i"));
    box.append(make("dt", "", tile[0]), parts[0], parts[1], wrap);
    tile[4] ??= 0;
    tile.push(...parts);
  }
  scene.marks = [...document.querySelectorAll(".curve i")];
  const heads = ["Request", "Prompt", "In cache", "Samples", "Output", "TTFT", "TPOT", "Preempted"];
  $("requests").tHead.insertRow().append(...heads.map((head) => make("th", "", head)));
  data.requests.forEach(([name, prompt, samples, cached, preemptions, arrival, , first, , output, tpot], place) => {
    const row = $("requests").tBodies[0].insertRow(), called = requestName(place) === name ? name : `${requestName(place)}  ${name}`;
    row.className = "later";
    const ttft = first === null ? null : first - arrival;
    for (const words of [called, prompt, cached, samples, output, seconds(ttft), seconds(tpot), preemptions]) row.append(make("td", "", typeof words === "number" ? words.toLocaleString() : words));
  });
}

function tellNumbers() {
  const { at } = scene, figures = replay.figures[at], now = at === replay.last ? Infinity : data.times[at];
  for (const [, value, about, format, , shown, small] of TILES) {
    shown.textContent = format(value(figures));
    small.textContent = about(figures);
  }
  for (const mark of scene.marks) mark.style.left = (replay.last ? at / replay.last * 100 : 0) + "%";
  let num = 0;
  while (num < data.requests.length && data.requests[num][5] <= now) num += 1;
  const rows = $("requests").tBodies[0].rows, [from, to] = [Math.min(num, scene.numArrived), Math.max(num, scene.numArrived)];
  for (let place = from; place < to; place += 1) rows[place].classList.toggle("later", place >= num);
  scene.numArrived = num;
}

/* The values of all steps as areas; a mark is where one is. */
function drawCurves() {
  curve($("curve"), replay.figures.map((figures) => figures.used), 0, .3);
  for (const [, value, , , top, , , canvas] of TILES) curve(canvas, replay.figures.map(value), top, .35);
}

function curve(canvas, values, top, opacity) {
  const scale = devicePixelRatio || 1, width = canvas.clientWidth, height = canvas.clientHeight, context = canvas.getContext("2d");
  if (!width) return;
  canvas.width = width * scale;
  canvas.height = height * scale;
  context.scale(scale, scale);
  const highest = Math.max(...values), most = top && highest > .15 ? top : highest || 1, each = Math.max(1, Math.floor(values.length / width)), x = (i) => (values.length > 1 ? i / (values.length - 1) * width : 0);
  context.beginPath();
  context.moveTo(0, height);
  for (let i = 0; i < values.length; i += each) context.lineTo(x(i), height - Math.max(...values.slice(i, i + each)) / most * (height - 3));
  context.lineTo(width, height - values.at(-1) / most * (height - 3));
  context.lineTo(width, height);
  context.globalAlpha = opacity;
  context.fillStyle = ink.prefill;
  context.fill();
}

/* ---- Controls ---- */

let timer = 0;
function play(isOn) {
  clearInterval(timer);
  timer = isOn ? setInterval(() => { if (scene.at >= replay.last) play(false); else go(scene.at + 1); }, 120) : 0;
  $("play").textContent = isOn ? "Pause" : "Play";
}

/* Buttons of which one is pressed. */
function choices(id, options, pressed, choice) {
  $(id).replaceChildren(...options.map(([value, words]) => {
    const button = make("button", "", words);
    button.type = "button";
    button.setAttribute("aria-pressed", String(value === pressed));
    button.onclick = () => { choice(value); choices(id, options, value, choice); };
    return button;
  }));
}

function build() {
  const { sizes, requests, steps } = data, numBlocks = sizes.num_blocks.toLocaleString();
  $("facts").textContent = `${plural(requests.length, "request")}, ${plural(scene.lines.length, "sequence")}, ${plural(steps.length, "step")}, ${numBlocks} blocks of ${plural(sizes.block_size, "token")}` + (data.numLost ? `. ${plural(data.numLost, "event")} were lost, so some of it may be wrong` : "");
  $("block-say").textContent = ` of ${plural(sizes.block_size, "token")}`;
  $("table-say").replaceChildren(`position ${sizes.block_size} × `, make("i", "", "i"));
  $("scrub").max = replay.last;
  $("scrub").oninput = () => { play(false); go(Number($("scrub").value)); };
  $("back").onclick = () => { play(false); go(scene.at - 1); };
  $("forth").onclick = () => { play(false); go(scene.at + 1); };
  $("play").onclick = () => { if (scene.at >= replay.last) go(0); play(!timer); };
  const widths = [0, 1000, 200, 50].filter((count) => count < replay.last);
  if (widths.length > 1) choices("zoom", widths.map((count) => [count, count ? `${count} steps` : "whole run"]), scene.zoom, (count) => { scene.zoom = count; draw(); });
  $("groups").hidden = sizes.num_groups < 2;
  if (sizes.num_groups > 1) choices("groups", sizes.windows.map((window, group) => [group, window ? `window ${window} (${group})` : `full (${group})`]), scene.group, (group) => { scene.group = group; draw(); });
  buildUnused();
  buildNumbers();
}

/* Boxes as high as the largest thing that they will show, within reason; what is larger scrolls. */
function fit() {
  const shown = scene.showsAll ? data.sizes.num_blocks : scene.numShown, width = $("memory").clientWidth, most = innerWidth < 700 ? 320 : 416;
  const side = sideOf(shown, width, most), holders = Math.max(...replay.figures.map((figures) => figures.holders));
  const high = Math.max(Math.ceil(shown / Math.floor(width / side)) * side + 4, CHIP.top + holders * CHIP.row + 18, 120);
  $("memory").style.height = $("tables").style.height = Math.min(high, most) + "px";
  const branches = Math.max(...replay.kept.map((state) => layoutOf(state, scene.group).height));
  $("tree").style.height = Math.min(Math.max(branches * 24 + 30, 150), 320) + "px";
  const lines = scene.lines.length;
  $("schedule").style.height = Math.min(lines * (lines > 60 ? 9 : lines > 24 ? 13 : 18) + 4, 400) + "px";
  for (const view of [memory, tables, schedule, budget, tree]) view.measure();
}

/* A pool is often much larger than what a run touches. */
function buildUnused() {
  const { numShown } = scene, { num_blocks } = data.sizes;
  if (numShown === num_blocks) return;
  const say = () => {
    $("unused").textContent = scene.showsAll ? "" : `Blocks ${(numShown + 1).toLocaleString()} to ${num_blocks.toLocaleString()} stay free in the whole run.`;
    $("all-blocks").textContent = scene.showsAll ? "Show only the blocks that the run uses" : "Show them";
  };
  $("all-blocks").hidden = false;
  $("all-blocks").onclick = () => { scene.showsAll = !scene.showsAll; say(); fit(); draw(); };
  say();
}

document.addEventListener("keydown", (event) => {
  const move = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
  if (event.target === $("scrub") || event.ctrlKey || event.metaKey || event.altKey) return;
  if (move) { event.preventDefault(); play(false); go(scene.at + move); }
  if (event.key === " " && event.target.tagName !== "BUTTON") { event.preventDefault(); $("play").click(); }
});
$("theme").onclick = () => {
  const root = document.documentElement, isDark = root.dataset.theme ? root.dataset.theme === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
  root.dataset.theme = isDark ? "light" : "dark";
  paint();
};
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", paint);
addEventListener("resize", () => { fit(); paint(); });

function paint() {
  ink.read();
  draw();
  drawCurves();
}

ink.read();
prepare();
build();
fit();
drawCurves();
go(scene.start);
