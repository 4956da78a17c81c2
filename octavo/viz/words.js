/* What the page says in words: names, what lies under the pointer, what a step decided. */

const plural = (number, word) => `${number.toLocaleString()} ${word}${number === 1 ? "" : "s"}`;
const count = plural;
const percent = (share) => (share * 100).toFixed(share && share < .1 ? 1 : 0) + " %";
const seconds = (value) => (value === null || value === undefined ? "–" : value < 1 ? `${(value * 1000).toFixed(value < .01 ? 2 : value < .1 ? 1 : 0)} ms` : `${value.toFixed(2)} s`);
const listed = (ids) => (ids.length > 6 ? `${ids.slice(0, 5).join(", ")} and ${ids.length - 5} more` : ids.join(", ").replace(/, ([^,]+)$/, " and $1"));

/* A request's name if it is short, else its number; and a sample's number behind it. */
function requestName(place) {
  const request = data.requests[place];
  return !request ? "?" : request[0].length <= 6 ? request[0] : "#" + (place + 1);
}

function nameOf(id) {
  const place = scene.requestOf.get(id);
  if (place === undefined || place < 0) return "seq " + id;
  return requestName(place) + (data.requests[place][2] > 1 ? "." + (id - scene.firstOf.get(place)) : "");
}

function aboutSequence(id) {
  const { state } = scene, place = scene.requestOf.get(id), request = data.requests[place], size = data.sizes.block_size;
  const blocks = (state.tables.get(id) ?? []).reduce((sum, table) => sum + table.filter(Boolean).length, 0);
  const lines = [`Sequence ${nameOf(id)}`];
  if (request) lines.push(`of request ${request[0]}, with ${plural(request[1], "prompt token")}`);
  if (state.computed.get(id)) lines.push(`${plural(state.computed.get(id), "token")} in ${plural(blocks, "block")} of ${size}`);
  return { key: "sequence" + id, lines, sequences: new Set([id]) };
}

function aboutBlock(block, copies = [block]) {
  const { state } = scene, size = data.sizes.block_size, owners = scene.owners.get(block) ?? [], node = state.nodes.get(block);
  const ids = [...new Set(owners.map(([id]) => id))], lines = [`Block ${block}`];
  if (ids.length) {
    const [id, group, place] = owners[0], filled = Math.max(...owners.map(([one, , at]) => filledOf(state, one, at)));
    lines.push(`Held by ${ids.length > 1 ? ids.length + " sequences: " : ""}${listed(ids.map(nameOf))}`);
    lines.push(`Positions ${place * size} to ${place * size + size - 1}, ${filled === size ? "all filled" : `${filled} of ${size} filled so far`}`);
    if (data.sizes.num_groups > 1) lines.push(groupName(group));
  } else lines.push(node ? "Cached: nobody holds it, but its tokens can be found again until it is evicted" : "Free");
  if (node) lines.push(`In the prefix tree as ${data.contents[node.content]}, block ${node.depth} of its text`);
  if (copies.length > 1) lines.push(`Blocks with the same tokens: ${listed(copies)}`);
  return { key: "block" + block, lines, sequences: new Set(ids), block: ids.length ? 0 : block };
}

function groupName(group) {
  const window = data.sizes.windows[group];
  return window ? `Layers with a window of ${window} tokens (group ${group})` : `Layers with full attention (group ${group})`;
}

const DOES = {
  waiting: () => "waits", idle: () => "runs, but this step computes nothing of it", preempted: () => "preempted: waits for blocks again",
  prefill: (tokens) => `prefill: ${plural(tokens, "prompt token")}`, again: (tokens) => `computes ${plural(tokens, "token")} again`, decode: () => "decodes a token a step",
};

function aboutLine(line, one, frame) {
  const request = data.requests[line.request], lines = [`Sequence ${nameOf(line.id)}`];
  if (request) lines.push(`of request ${request[0]}`);
  if (one) lines.push(`Step ${data.steps[frame]}: ${DOES[one[0]](one[3])}`);
  if (line.end) lines.push(line.end[1] < 0 ? "Given up: a better beam took its place" : `Ended (${data.words[line.end[1]]}) with ${plural(line.end[2], "token")}`);
  return { key: `line${line.id}.${frame}`, lines, sequences: new Set([line.id]) };
}

const tookOf = (frame) => (data.stepMs[frame] ? `took ${data.stepMs[frame].toFixed(data.stepMs[frame] < 10 ? 2 : 1)} ms` : "");

/* The step in one sentence. */
function sentence() {
  const frame = scene.at, figures = replay.figures[frame], end = " Use the slider, or the arrow keys, to go through the steps.";
  if (frame === replay.last) return "The end of the run." + end;
  const does = { prefill: 0, again: 0, decode: 0 };
  for (const [, , kind] of scene.state.batch.values()) does[kind] += 1;
  const parts = [];
  if (does.prefill) parts.push(`${plural(figures.prefill, "prompt token")} of ${plural(does.prefill, "sequence")}`);
  if (does.again) parts.push(`${plural(figures.again, "token")} of ${plural(does.again, "sequence")} again, after a preemption`);
  if (does.decode) parts.push(`one new token for each of ${plural(does.decode, "sequence")}`.replace("for each of 1 sequence", "for 1 sequence"));
  const waits = figures.waiting ? ` ${plural(figures.waiting, "sequence")} ${figures.waiting === 1 ? "waits" : "wait"}.` : "";
  return (parts.length ? `This step computes ${parts.join(", and ")}.` : "This step computes nothing.") + waits;
}

const WHY_LEFT = { blocks: "no block was free", priority: "a better request came", fault: "a step failed", alone: "another runs alone after a fault", rewound: "it goes on from before its window" };

/* What a frame's changes say: [sign, sentence] each. Blocks that are given, evicted or published are told together. */
function newsOf(changes) {
  const news = [], given = [], evicted = [], published = [];
  changes.forEach(([letter, id, ...rest], i) => {
    if (letter === "g") given.push(...rest.slice(1));
    else if (letter === "e") evicted.push(id);
    else if (letter === "p") for (let at = 2; at < rest.length; at += 2) published.push(rest[at]);
    else if (letter === "k") {
      const isNext = changes[i - 1]?.[0] === "k" && changes[i - 1][1] === id, children = [rest[0]];
      for (let j = i + 1; changes[j]?.[0] === "k" && changes[j][1] === id; j += 1) children.push(changes[j][2]);
      if (!isNext) news.push(["⇉", `${nameOf(id)} forks into ${listed(children.map(nameOf))}: tables are copied, blocks are shared.`]);
    } else if (TOLD[letter]) news.push(TOLD[letter](id, ...rest));
  });
  const blocks = (ids) => `${ids.length > 1 ? "Blocks" : "Block"} ${listed(ids)} ${ids.length > 1 ? "are" : "is"}`;
  if (evicted.length) news.push(["×", `${blocks(evicted)} evicted from the prefix tree to make room.`]);
  if (given.length) news.push(["+", `${blocks(given)} given out.`]);
  if (published.length) news.push(["•", `${blocks(published)} full and can be found in the prefix tree.`]);
  return news;
}

const TOLD = {
  a: (place) => ["→", `Request ${requestName(place)} arrives with ${plural(data.requests[place]?.[1] ?? 0, "prompt token")}.`],
  r: (id) => ["▸", `${nameOf(id)} starts.`],
  h: (id, tokens, ...found) => ["✓", `${nameOf(id)} finds ${plural(tokens, "token")} in the prefix tree: ${plural(found.flat().length, "block")} need no computing.`.replace("1 block need", "1 block needs")],
  u: (id) => ["−", `Beam ${nameOf(id)} is given up.`],
  c: (id, group, place, target) => ["⇄", `${nameOf(id)} writes into a block that others share, so it gets a copy of its own first: block ${target}.`],
  o: (id, group, ...ids) => ["◂", `The window has passed ${ids.length > 1 ? "blocks" : "block"} ${listed(ids)} of ${nameOf(id)}: given back.`],
  x: (...ids) => ["×", ids[0] === undefined ? "The prefix tree is emptied." : `Blocks ${listed(ids)} leave the prefix tree: their content is not trusted.`],
  m: (id, why, by) => ["!", `${nameOf(id)} is preempted: ${WHY_LEFT[data.words[why]] ?? "it gave up its blocks"}${by >= 0 && by !== id ? ` (for ${nameOf(by)})` : ""}. It waits again.`],
  d: (id, reason, tokens) => ["■", `${nameOf(id)} ends with ${plural(tokens, "token")} (${data.words[reason]}).`],
  t: (place) => ["1", `Request ${requestName(place)} has its first token.`],
  w: (place, why) => ["…", `Request ${requestName(place)} waits. ${data.words[why].replace(/^(\w)(\w*): /, (_, first, more) => first.toUpperCase() + more + ": ")}.`],
};
